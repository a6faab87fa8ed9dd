//! Columns as kubectl prints them.

/// Text that a node or a server chose, without what a terminal would take for a command.
#[must_use]
pub fn printable(text: &str) -> String {
    let harmless =
        |c: char| !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if harmless(c) { c } else { '\u{fffd}' }).collect()
}

/// Rows under their headings, each column as wide as it must be, three blanks between them.
#[must_use]
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(|cell| printable(cell))).collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([headings[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded: Vec<_> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("   ").trim_end().to_owned() + "\n"
    };
    let body: String = rows.iter().map(|row| line(std::array::from_fn(|column| row[column].as_str()))).collect();
    line(headings) + &body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_moves_no_cursor() {
        let hostile = ["gw\u{1b}[2J\u{7}\r\n".to_owned(), "a\u{202e}b".to_owned()];
        let said = table(["NAME", "ERROR"], &[hostile]);
        assert_eq!(said.lines().count(), 2);
        assert!(said.chars().all(|c| c == '\n' || printable(&c.to_string()) == c.to_string()), "{said:?}");
    }

    #[test]
    fn a_column_is_as_wide_as_what_is_in_it_and_no_line_ends_in_blanks() {
        let rows = [["a".to_owned(), "1".to_owned()], ["a longer one".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "N"], &rows), "NAME           N\na              1\na longer one\n");
    }
}
