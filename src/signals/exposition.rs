//! Parser for the text formats of Prometheus (0.0.4) and `OpenMetrics`. It borrows from the page and allocates nothing.
//!
//! Formats: <https://prometheus.io/docs/instrumenting/exposition_formats/> and
//! <https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md>.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
};

use aho_corasick::{AhoCorasick, MatchKind, packed};
use memchr::{memchr, memchr3, memrchr};

/// One sample line of a page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<'a> {
    /// Name of the series.
    pub name: &'a [u8],
    /// Labels of the series.
    pub labels: Labels<'a>,
    /// Value; may be NaN or infinite.
    pub value: f64,
    /// Time as written: milliseconds in Prometheus' format, seconds in `OpenMetrics`.
    pub timestamp: Option<f64>,
}

/// The text between the braces, already checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::copy_iterator)] // Small: it only points into the page.
pub struct Labels<'a> {
    rest: &'a [u8],
}

/// A label's value, as written between the quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelValue<'a>(pub &'a [u8]);

/// A label's name and value.
type Pair<'a> = (&'a [u8], LabelValue<'a>);

impl<'a> LabelValue<'a> {
    /// The value without escapes; copied only if there are any.
    #[must_use]
    pub fn text(&self) -> Cow<'a, [u8]> {
        if memchr(b'\\', self.0).is_none() {
            return Cow::Borrowed(self.0);
        }
        let mut plain = Vec::with_capacity(self.0.len());
        let mut bytes = self.0.iter().copied();
        while let Some(byte) = bytes.next() {
            match byte {
                b'\\' => match bytes.next() {
                    Some(b'n') => plain.push(b'\n'),
                    Some(escaped @ (b'\\' | b'"')) => plain.push(escaped),
                    Some(other) => plain.extend([b'\\', other]),
                    None => plain.push(b'\\'),
                },
                byte => plain.push(byte),
            }
        }
        Cow::Owned(plain)
    }
}

#[allow(clippy::copy_iterator)] // Small: it only points into the page.
impl<'a> Iterator for Labels<'a> {
    type Item = Pair<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (item, rest) = item(self.rest)?;
            self.rest = rest;
            if let Item::Label(pair) = item {
                return Some(pair);
            }
        }
    }
}

/// The page without a byte order mark, which some servers send first.
#[must_use]
pub fn without_mark(page: &[u8]) -> &[u8] {
    page.strip_prefix(b"\xef\xbb\xbf").unwrap_or(page)
}

/// Bytes of a name: letters, digits, underscore and colon.
static NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        #[allow(clippy::cast_possible_truncation)] // Below 256.
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric() || b == b'_' || b == b':';
        byte += 1;
    }
    table
};

#[inline]
fn name(text: &[u8]) -> usize {
    if text.first().is_none_or(u8::is_ascii_digit) {
        return 0;
    }
    text.iter().position(|byte| !NAME[usize::from(*byte)]).unwrap_or(text.len())
}

/// Parses one line. Also returns the text after it.
fn sample(line: &[u8]) -> Option<(Sample<'_>, &[u8])> {
    let end = name(line);
    let mut named = (end > 0).then_some(&line[..end]);
    let mut rest = blank(&line[end..]);
    let mut labels = Labels::default();
    if let [b'{', inner @ ..] = rest {
        let mut at = inner;
        while let Some((item, next)) = item(at) {
            at = next;
            // A quoted name stands between the braces, and there is only one name.
            if let Item::Name(quoted) = item
                && named.replace(quoted).is_some()
            {
                return None;
            }
        }
        let at = blank(at);
        rest = at.strip_prefix(b"}")?;
        labels = Labels { rest: &inner[..inner.len() - at.len()] };
    } else if rest.len() == line.len() - end {
        return None;
    }
    let named = named.filter(|name| !name.is_empty())?;
    let rest = blank(rest);
    let (value, rest) = number(rest)?;
    let rest = blank(rest);
    let (timestamp, rest) = match rest.first() {
        None | Some(b'\n' | b'\r' | b'#') => (None, rest),
        Some(_) => {
            let (timestamp, rest) = number(rest)?;
            (Some(timestamp), blank(rest))
        }
    };
    let rest = match rest {
        [] | [b'\r'] => &[][..],
        [b'\n', rest @ ..] | [b'\r', b'\n', rest @ ..] => rest,
        // An exemplar.
        [b'#', exemplar @ ..] if blank(exemplar).starts_with(b"{") => memchr(b'\n', rest).map_or(&[][..], |end| &rest[end + 1..]),
        _ => return None,
    };
    Some((Sample { name: named, labels, value, timestamp }, rest))
}

/// An item between two commas within the braces.
enum Item<'a> {
    Label(Pair<'a>),
    /// The name of the series, in quotes.
    Name(&'a [u8]),
}

/// Parses one item. Also returns the text after its comma.
#[inline]
fn item(text: &[u8]) -> Option<(Item<'_>, &[u8])> {
    let text = blank(text);
    let (key, rest, is_quoted) = if let [b'"', quoted @ ..] = text {
        let close = quote(quoted)?;
        (&quoted[..close], blank(&quoted[close + 1..]), true)
    } else {
        let end = name(text);
        (&text[..end], blank(&text[end..]), false)
    };
    if key.is_empty() {
        return None;
    }
    let (item, rest) = match rest {
        [b'=', rest @ ..] => {
            let value = blank(rest).strip_prefix(b"\"")?;
            let close = quote(value)?;
            (Item::Label((key, LabelValue(&value[..close]))), blank(&value[close + 1..]))
        }
        _ if is_quoted => (Item::Name(key), rest),
        _ => return None,
    };
    match rest {
        [b',', rest @ ..] => Some((item, rest)),
        [b'}', ..] | [] => Some((item, rest)),
        _ => None,
    }
}

/// Index of the closing quote, if it is on the same line.
#[inline]
fn quote(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        // Most values are short, and for those a loop is faster than a call.
        let near = text.get(at..)?.iter().take(24).position(|byte| matches!(byte, b'"' | b'\\' | b'\n'));
        let next = match near {
            Some(near) => at + near,
            None => at + 24 + memchr3(b'"', b'\\', b'\n', text.get(at + 24..)?)?,
        };
        match text[next] {
            b'"' => return Some(next),
            b'\\' if text.get(next + 1) != Some(&b'\n') => at = next + 2,
            _ => return None,
        }
    }
}

#[inline]
fn blank(text: &[u8]) -> &[u8] {
    let mut text = text;
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    text
}

/// Parses a number up to the next blank or the end of the line.
#[inline]
fn number(text: &[u8]) -> Option<(f64, &[u8])> {
    // Most values are whole numbers.
    let mut whole: u64 = 0;
    let mut at = 0;
    while let Some(digit) = text.get(at).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
        whole = whole.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
    }
    let ends = |at: usize| matches!(text.get(at), None | Some(b' ' | b'\t' | b'\n' | b'\r'));
    #[allow(clippy::cast_precision_loss)] // At most fifteen digits.
    if (1..=15).contains(&at) && ends(at) {
        return Some((whole as f64, &text[at..]));
    }
    while !ends(at) {
        at += 1;
    }
    let token = &text[..at];
    // Rust's parser accepts the numbers of the formats: it takes "infinity", as they do, and rejects "1_000", as they
    // do.
    let value = std::str::from_utf8(token).ok()?.parse().ok()?;
    Some((value, &text[at..]))
}

/// Names, and indexes of those whose types are wanted.
type Key = (Vec<String>, Vec<usize>);

/// Finds a few families in one pass over a page. Only lines that contain one of the names are parsed.
#[derive(Clone, Debug)]
pub struct Families {
    search: Search,
    names: Vec<String>,
    /// The families whose `# TYPE` lines are also wanted.
    typed: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Search {
    /// The fastest search for several names, if the processor supports it.
    Packed(Box<packed::Searcher>),
    /// `None` only for names of gigabytes, which the API server rejects. Nothing is found then.
    Any(Option<AhoCorasick>),
}

/// A match in a page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Found<'a> {
    /// A sample.
    Sample(Sample<'a>),
    /// The type of the family.
    Type(&'a [u8]),
    /// A line that begins with the family's name but is not a sample.
    Malformed,
}

impl Families {
    /// Looks for these names, which must differ. `typed` has the indexes of those whose types are also wanted.
    #[must_use]
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>, typed: Vec<usize>) -> Self {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let search = match packed::Searcher::new(&names).filter(|_| names.len() > 1) {
            Some(searcher) => Search::Packed(Box::new(searcher)),
            None => Search::Any(AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(&names).ok()),
        };
        Self { search, names, typed }
    }

    /// Like [`Families::new`], but shared with every other probe for the same names: a search takes 5 KB, and the policies of a
    /// cluster mostly look for the same names.
    #[must_use]
    pub fn shared(names: &[String], typed: Vec<usize>) -> Arc<Self> {
        static KNOWN: LazyLock<Mutex<HashMap<Key, Weak<Families>>>> = LazyLock::new(Mutex::default);
        let key = (names.to_vec(), typed);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(families) = known.get(&key).and_then(Weak::upgrade) {
            return families;
        }
        known.retain(|_, families| families.strong_count() > 0);
        let families = Arc::new(Self::new(names.iter().map(String::as_str), key.1.clone()));
        known.insert(key, Arc::downgrade(&families));
        families
    }

    /// Indexes and matches in the order of the page, which must be complete lines without a byte order mark.
    pub fn find<'a>(&'a self, page: &'a [u8]) -> impl Iterator<Item = (usize, Found<'a>)> + 'a {
        let (packed, any) = match &self.search {
            Search::Packed(searcher) => (Some(searcher.find_iter(page)), None),
            Search::Any(search) => (None, search.as_ref().map(|search| search.find_iter(page))),
        };
        let places = packed.into_iter().flatten().chain(any.into_iter().flatten()).map(|found| found.start());
        // End of the last parsed line: a line may contain a name more than once.
        let mut read = 0;
        places.filter_map(move |place| {
            let before = page.get(read..place)?;
            let begin = memrchr(b'\n', before).map_or(read, |end| read + end + 1);
            let line = &page[begin..];
            read = memchr(b'\n', &page[place..]).map_or(page.len(), |end| place + end + 1);
            self.read(blank(line))
        })
    }

    fn read<'a>(&self, line: &'a [u8]) -> Option<(usize, Found<'a>)> {
        let known = |name: &[u8]| self.names.iter().position(|known| known.as_bytes() == name);
        if line.starts_with(b"#") {
            let (name, kind) = heading(line)?;
            return known(name).filter(|which| self.typed.contains(which)).map(|which| (which, Found::Type(kind)));
        }
        match sample(line) {
            Some((sample, _)) => known(sample.name).map(|which| (which, Found::Sample(sample))),
            None => known(&line[..name(line)]).map(|which| (which, Found::Malformed)),
        }
    }
}

/// Parses a `# TYPE` line into the name and the type of a family.
fn heading(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = &line[..memchr(b'\n', line).unwrap_or(line.len())];
    let rest = word(word(line, b"#")?, b"TYPE")?;
    let (name, rest) = if let [b'"', quoted @ ..] = rest {
        let close = quote(quoted)?;
        (&quoted[..close], &quoted[close + 1..])
    } else {
        rest.split_at(name(rest))
    };
    matches!(rest.first(), Some(b' ' | b'\t')).then(|| (name, rest.trim_ascii()))
}

/// The text after a word and the blanks that follow it.
fn word<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let rest = text.strip_prefix(word)?;
    matches!(rest.first(), Some(b' ' | b'\t')).then(|| blank(rest))
}

/// Each line of a page that is neither empty nor a comment; `None` if it is not a sample.
#[cfg(test)]
pub(super) fn lines(page: &[u8]) -> Vec<Option<Sample<'_>>> {
    let (mut rest, mut all) = (without_mark(page), Vec::new());
    while !rest.is_empty() {
        let line = blank(rest);
        let end = memchr(b'\n', line).map_or(line.len(), |end| end + 1);
        let is_sample = !line.starts_with(b"#") && !line[..end].trim_ascii().is_empty();
        let read = if is_sample { sample(line) } else { None };
        rest = read.map_or(&line[end..], |(_, next)| next);
        if is_sample {
            all.push(read.map(|(sample, _)| sample));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The samples of a page, and the number of lines that are neither samples nor comments.
    fn read(page: &str) -> (Vec<String>, usize) {
        let all = lines(page.as_bytes());
        let seen: Vec<_> = all.iter().flatten().map(shown).collect();
        let malformed = all.len() - seen.len();
        (seen, malformed)
    }

    fn shown(sample: &Sample<'_>) -> String {
        let labels: Vec<_> = sample
            .labels
            .map(|(key, value)| format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(&value.text())))
            .collect();
        let time = sample.timestamp.map(|t| format!(" @{t}")).unwrap_or_default();
        format!("{}[{}] {}{time}", String::from_utf8_lossy(sample.name), labels.join(";"), sample.value)
    }

    #[test]
    fn what_the_formats_allow_is_read() {
        for (line, seen) in [
            ("a 1\n", "a[] 1"),
            ("a 1", "a[] 1"),
            ("a{} 1\n", "a[] 1"),
            ("a\t\t1.5e3\r\n", "a[] 1500"),
            ("a -0.25 1700000000000\n", "a[] -0.25 @1700000000000"),
            ("a{b=\"c\"} 2.097158e+06\n", "a[b=c] 2097158"),
            ("a{b=\"c\",d=\"e\",} 1\n", "a[b=c;d=e] 1"),
            ("a { b = \"c\" , d = \"e\" } 1\n", "a[b=c;d=e] 1"),
            (" \t a  1  \n", "a[] 1"),
            ("a{b=\"c\"}1\n", "a[b=c] 1"),
            ("{b=\"c\", \"a.b\" , d=\"e\"} 1\n", "a.b[b=c;d=e] 1"),
            ("{ \"a\" } 1\n", "a[] 1"),
            ("\u{feff}a 1\n", "a[] 1"),
            ("a{ b = \"c\" , d = \"e\" } 1\n", "a[b=c;d=e] 1"),
            ("a{b=\"x\\\\y\\\"z\\n,}{=\"} 1\n", "a[b=x\\y\"z\n,}{=] 1"),
            (
                "a{b=\"a value that is longer than twenty-four bytes\"} 1\n",
                "a[b=a value that is longer than twenty-four bytes] 1",
            ),
            ("a{b=\"\"} +Inf\n", "a[b=] inf"),
            ("a NaN\n", "a[] NaN"),
            ("a -Inf\n", "a[] -inf"),
            ("a_bucket{le=\"1\"} 3 # {trace_id=\"x\"} 0.5 1700000000\n", "a_bucket[le=1] 3"),
            ("a 3 17.5 # {trace_id=\"x\"} 0.5\n", "a[] 3 @17.5"),
            ("{\"a.b\",c=\"d\"} 1\n", "a.b[c=d] 1"),
            ("{\"a.b\"} 1\n", "a.b[] 1"),
            ("a{\"c.d\"=\"e\"} 1\n", "a[c.d=e] 1"),
            ("a:b 123456789012345678\n", "a:b[] 123456789012345680"),
        ] {
            let expected: Vec<_> = Some(seen.to_owned()).filter(|seen| !seen.is_empty()).into_iter().collect();
            assert_eq!(read(line).0, expected, "{line}");
        }
    }

    #[test]
    fn what_is_not_is_counted_and_the_next_line_is_read() {
        for line in [
            "a",
            "a ",
            "1a 1",
            "a{b=\"c\" 1",
            "a{b=\"c} 1",
            "a{b=c} 1",
            "a{=\"c\"} 1",
            "a{\"b\"} 1",
            "{\"a\",\"b\"} 1",
            "{\"\"} 1",
            "a one",
            "a 1 2 3",
            "a 1 x",
            "-",
            "a{b=\"c\"d=\"e\"} 1",
            "{} 1",
            "a 1 # x",
        ] {
            assert_eq!(read(&format!("{line}\nb 2\n")), (vec!["b[] 2".to_owned()], 1), "{line}");
        }
    }

    #[test]
    fn comments_and_empty_lines_are_nothing() {
        assert_eq!(read("# HELP a b\n# TYPE a gauge\n\n  \n#\na 1\n# EOF\n"), (vec!["a[] 1".to_owned()], 0));
        assert_eq!(read("# EOF\na 1\n"), (vec!["a[] 1".to_owned()], 0), "a comment like any other in Prometheus' format");
    }

    #[test]
    fn families_are_found_by_their_whole_names_at_the_beginning_of_a_line() {
        let page = "# HELP go_goroutines go_goroutines 7\n# TYPE go_goroutines gauge\nx_go_goroutines 1\ngo_goroutines_total 2\ny{a=\"go_goroutines 3\"} 4\ngo_goroutines{n=\"1\"} 5\ngo_goroutines x\ngo_goroutines 6";
        let families = Families::new(["go_goroutines", "y", "go"], vec![0]);
        let seen = |page: &str| {
            families
                .find(page.as_bytes())
                .map(|(which, found)| match found {
                    Found::Sample(sample) => format!("{which}={}", sample.value),
                    Found::Type(kind) => format!("{which}:{}", String::from_utf8_lossy(kind)),
                    Found::Malformed => format!("{which}?"),
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(seen(page), ["0:gauge", "1=4", "0=5", "0?", "0=6"]);
        assert_eq!(seen("go_goroutines 1\r\ngo_goroutines 2"), ["0=1", "0=2"], "the first line too");
        assert_eq!(seen("# TYPE go_goroutines counter\r\ny 1\n"), ["0:counter", "1=1"]);
        assert_eq!(seen("# TYPE go_goroutines"), [""; 0]);
        assert_eq!(seen("go 1\n"), ["2=1"]);
        assert_eq!(seen(""), [""; 0]);
        for page in [
            "  #  TYPE\tgo_goroutines \t gauge \t\n \tgo_goroutines  7 \n",
            "# TYPE \"go_goroutines\" gauge\n{\"go_goroutines\"} 7",
            "# TYPE go_goroutines gauge\r\n{n=\"go_goroutines\",\"go_goroutines\"} 7\r\n",
            "# TYPE go_goroutines gauge\ngo_goroutines {} 7\n# EOF\n",
        ] {
            assert_eq!(seen(page), ["0:gauge", "0=7"], "{page}");
        }
        assert_eq!(seen("#TYPE go_goroutines counter\n# TYPEgo_goroutines counter\ngo_goroutines_go_goroutines 1\n"), [""; 0]);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_stumble(page in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = sample(&page);
            let families = Families::new(["a", "b"], vec![0]);
            let _ = families.find(&page).count();
        }

        #[test]
        fn lines_of_likely_bytes_neither(page in "[a{}=\"\\\\ ,1.#\n]{0,60}") {
            let lines = page.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')).count();
            let (seen, malformed) = read(&page);
            prop_assert!(seen.len() + malformed <= lines.max(1) * 2);
        }

        #[test]
        fn what_is_written_is_read_back(name in "[a-z_:][a-z0-9_:]{0,20}", value in any::<f64>(), label in "[ -~]{0,40}") {
            let escaped = label.replace('\\', "\\\\").replace('"', "\\\"");
            let page = format!("{name}{{l=\"{escaped}\"}} {value:?}\n");
            let (sample, _) = sample(page.as_bytes()).expect("a sample");
            prop_assert_eq!(sample.name, name.as_bytes());
            prop_assert!(sample.value.to_bits() == value.to_bits() || (sample.value.is_nan() && value.is_nan()));
            let mut labels = sample.labels;
            let (_, read) = labels.next().expect("a label");
            let text = read.text();
            prop_assert_eq!(text.as_ref(), label.as_bytes());
        }
    }
}
