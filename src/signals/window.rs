//! One line's first 128 bytes at once: what stands where, as bit masks, and the line read from them without looking at
//! every byte in turn. It reads most lines of most pages; whatever it does not understand it leaves to the careful reader.

use wide::u8x16;

/// Bytes looked at.
pub const WIDTH: usize = 128;

/// Where a line's parts are, counted from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The end of the name.
    pub name: usize,
    /// Where the labels end; the name's end where there are none.
    pub labels: usize,
    /// Each quote of the labels, a bit.
    pub quotes: u128,
    /// Where the value begins.
    pub value: usize,
    /// The line's end.
    pub end: usize,
}

/// Three masks, a bit for each byte.
struct Masks {
    quotes: u128,
    /// Neither letter, digit, underscore nor colon.
    not_name: u128,
    /// Newlines and backslashes.
    stops: u128,
}

impl Masks {
    #[inline]
    fn of(window: &[u8; WIDTH]) -> Self {
        let (mut quotes, mut not_name, mut stops) = ([0u64; 2], [0u64; 2], [0u64; 2]);
        let (chunks, _) = window.as_chunks::<16>();
        for (n, chunk) in chunks.iter().enumerate() {
            let bytes = u8x16::from(*chunk);
            let letter = (bytes | u8x16::splat(0x20)) - u8x16::splat(b'a');
            let digit = bytes - u8x16::splat(b'0');
            // A smaller unsigned number is its own minimum with the largest that is allowed.
            let name = letter.min(u8x16::splat(25)).simd_eq(letter)
                | digit.min(u8x16::splat(b':' - b'0')).simd_eq(digit)
                | bytes.simd_eq(u8x16::splat(b'_'));
            let stop = bytes.simd_eq(u8x16::splat(b'\n')) | bytes.simd_eq(u8x16::splat(b'\\'));
            let (half, place) = (n / 4, n % 4 * 16);
            quotes[half] |= bits(bytes.simd_eq(u8x16::splat(b'"'))) << place;
            not_name[half] |= (bits(name) ^ 0xffff) << place;
            stops[half] |= bits(stop) << place;
        }
        let join = |halves: [u64; 2]| u128::from(halves[0]) | u128::from(halves[1]) << 64;
        Self { quotes: join(quotes), not_name: join(not_name), stops: join(stops) }
    }
}

#[inline]
fn bits(mask: u8x16) -> u64 {
    u64::from(mask.to_bitmask())
}

/// The lowest bit's place.
#[inline]
fn first(mask: u128) -> usize {
    mask.trailing_zeros() as usize
}

/// Reads the line that the window begins with; `None` where it is no plain one, or longer.
#[inline]
pub fn read(window: &[u8; WIDTH]) -> Option<Parts> {
    let Masks { quotes, not_name, stops } = Masks::of(window);
    let name = first(not_name);
    if name == 0 || window[0].is_ascii_digit() {
        return None;
    }
    let end = first(stops);
    let at = |place: usize| window.get(place).copied().unwrap_or_default();
    if at(end) != b'\n' {
        return None;
    }
    if at(name) == b' ' {
        return Some(Parts { name, labels: name, quotes: 0, value: name + 1, end });
    }
    if at(name) != b'{' {
        return None;
    }
    // The names between quotes are left; all that is no name must be the quotes' own surroundings.
    let mut left = quotes;
    let mut begin = name + 1;
    loop {
        let open = first(left);
        left &= left.wrapping_sub(1);
        let close = first(left);
        left &= left.wrapping_sub(1);
        if close >= end || open <= begin + 1 || at(open - 1) != b'=' || at(begin).is_ascii_digit() {
            return None;
        }
        if first(not_name >> begin) != open - 1 - begin {
            return None;
        }
        match at(close + 1) {
            b',' => begin = close + 2,
            b'}' if at(close + 2) == b' ' => {
                let before = (1u128 << close << 1).wrapping_sub(1);
                return Some(Parts { name, labels: close + 1, quotes: quotes & before, value: close + 3, end });
            }
            _ => return None,
        }
    }
}

/// The number between these two places, if it is one of up to eight digits.
#[inline]
pub fn whole(window: &[u8; WIDTH], begin: usize, end: usize) -> Option<f64> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const PAIRS: u64 = 0x0000_00ff_0000_00ff;
    let digits = end.checked_sub(begin).filter(|digits| (1..=8).contains(digits))?;
    let eight: [u8; 8] = window.get(begin..begin + 8)?.try_into().ok()?;
    // The first digit has the lowest byte; those that are missing become zeros before it.
    let digits = (u64::from_le_bytes(eight) ^ (0x30 * ONES)) << (8 * (8 - digits));
    if (digits.wrapping_add(0x76 * ONES) | digits) & (0x80 * ONES) != 0 {
        return None;
    }
    // Two digits, then four, then all eight are put together in one multiplication each.
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let high = (pairs & PAIRS).wrapping_mul(100 + (1_000_000 << 32));
    let low = (pairs >> 16 & PAIRS).wrapping_mul(1 + (10_000 << 32));
    #[allow(clippy::cast_possible_truncation)] // The upper half is what is wanted.
    Some(f64::from((high.wrapping_add(low) >> 32) as u32))
}
