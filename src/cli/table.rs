//! Columns as kubectl prints them.

/// Rows under their headings, each column as wide as it must be, three blanks between them.
#[must_use]
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
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
    fn a_column_is_as_wide_as_what_is_in_it_and_no_line_ends_in_blanks() {
        let rows = [["a".to_owned(), "1".to_owned()], ["a longer one".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "N"], &rows), "NAME           N\na              1\na longer one\n");
    }
}
