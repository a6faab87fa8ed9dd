//! Tables as kubectl prints them.

/// Replaces control characters and those that change the direction of writing, because nodes and servers chose the text.
#[must_use]
pub fn printable(text: &str) -> String {
    let harmless =
        |c: char| !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if harmless(c) { c } else { '\u{fffd}' }).collect()
}

/// Table that may be printed in parts: a column keeps the greatest width that it has had.
pub struct Table {
    /// Headings that are not printed yet.
    headings: Option<Vec<String>>,
    widths: Vec<usize>,
}

impl Table {
    /// Starts a table. Without headings, the columns are as wide as their cells.
    #[must_use]
    pub fn new(headings: &[&str], no_headers: bool) -> Self {
        let headings = (!no_headers).then(|| headings.iter().map(|&heading| heading.to_owned()).collect());
        Self { headings, widths: Vec::new() }
    }

    /// Returns the lines of these rows, with the headings before the first. Three spaces separate columns, and no line ends in spaces.
    pub fn lines(&mut self, rows: &[Vec<String>]) -> String {
        let headings = self.headings.take();
        let cells = |row: &Vec<String>| row.iter().map(|cell| printable(cell)).collect::<Vec<_>>();
        let rows: Vec<_> = headings.into_iter().chain(rows.iter().map(cells)).collect();
        for row in &rows {
            self.widths.resize(self.widths.len().max(row.len()), 0);
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |row: &Vec<String>| {
            let padded: Vec<_> = row.iter().zip(&self.widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            padded.join("   ").trim_end().to_owned() + "\n"
        };
        rows.iter().map(line).collect()
    }
}

/// Returns a whole table with its headings.
#[must_use]
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<_> = rows.iter().map(|row| row.to_vec()).collect();
    Table::new(&headings, false).lines(&rows)
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

    #[test]
    fn rows_that_follow_have_no_headings_and_keep_the_width() {
        let row = |name: &str| vec![vec![name.to_owned(), "1".to_owned()]];
        let mut table = Table::new(&["NAME", "N"], false);
        assert_eq!(table.lines(&row("gateway")), "NAME      N\ngateway   1\n");
        assert_eq!(table.lines(&row("a")), "a         1\n");
        assert_eq!(Table::new(&["NAME", "N"], true).lines(&row("a")), "a   1\n");
    }
}
