//! A simple parser of the same formats, character by character. Tests compare the fast parser with it.

use proptest::prelude::*;

use super::exposition::{self, Families, Found, Sample, without_mark};

/// Name, labels, value and time, as written.
type Read = (String, Vec<(String, String)>, u64, Option<u64>);

struct Line<'a>(&'a [char]);

impl Line<'_> {
    fn eat(&mut self, wanted: char) -> bool {
        let is_there = self.0.first() == Some(&wanted);
        self.0 = &self.0[usize::from(is_there)..];
        is_there
    }

    fn blanks(&mut self) -> usize {
        self.take(|c| c == ' ' || c == '\t').len()
    }

    fn take(&mut self, is: impl Fn(char) -> bool) -> String {
        let end = self.0.iter().position(|c| !is(*c)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        self.0 = rest;
        taken.iter().collect()
    }

    fn name(&mut self) -> Option<String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        if self.0.first().is_some_and(char::is_ascii_digit) {
            None
        } else {
            Some(self.take(is_name)).filter(|name| !name.is_empty())
        }
    }

    fn quoted(&mut self) -> Option<String> {
        if !self.eat('"') {
            return None;
        }
        let mut text = String::new();
        loop {
            let (next, rest) = self.0.split_first()?;
            self.0 = rest;
            text.push(*next);
            match next {
                '"' => {
                    text.pop();
                    return Some(text);
                }
                '\\' => {
                    let (escaped, rest) = self.0.split_first()?;
                    self.0 = rest;
                    text.push(*escaped);
                }
                _ => {}
            }
        }
    }

    fn number(&mut self) -> Option<f64> {
        self.take(|c| c != ' ' && c != '\t').parse().ok()
    }

    fn sample(mut self) -> Option<Read> {
        let mut name = self.name();
        let mut is_apart = self.blanks() > 0;
        let mut labels = Vec::new();
        if self.eat('{') {
            is_apart = true;
            loop {
                self.blanks();
                if self.eat('}') {
                    break;
                }
                let quoted = self.quoted();
                let is_quoted = quoted.is_some();
                let key = quoted.or_else(|| self.name()).filter(|key| !key.is_empty())?;
                self.blanks();
                if self.eat('=') {
                    self.blanks();
                    labels.push((key, self.quoted()?));
                } else if !is_quoted || name.replace(key).is_some() {
                    return None;
                }
                self.blanks();
                if !self.eat(',') {
                    if self.eat('}') {
                        break;
                    }
                    return None;
                }
            }
            self.blanks();
        }
        let (name, value) = (name.filter(|_| is_apart)?, self.number()?);
        self.blanks();
        let time = if self.0.is_empty() || self.0[0] == '#' { None } else { Some(self.number()?.to_bits()) };
        self.blanks();
        if self.eat('#') {
            self.blanks();
            return self.eat('{').then_some((name, labels, value.to_bits(), time));
        }
        self.0.is_empty().then_some((name, labels, value.to_bits(), time))
    }
}

/// The lines that are neither empty nor comments: the sample, if it is one, and the name at its beginning.
fn simple(page: &str) -> Vec<(Option<Read>, Option<String>)> {
    let lines = page.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line).trim_start_matches([' ', '\t']));
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let line: Vec<char> = line.chars().collect();
            (Line(&line).sample(), Line(&line).name())
        })
        .collect()
}

/// Name and type of the `# TYPE` lines.
fn types(page: &str) -> Vec<(String, String)> {
    let words = page.split('\n').map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    words
        .filter_map(|words| match words[..] {
            ["#", "TYPE", name, kind] => Some((name.trim_matches('"').to_owned(), kind.to_owned())),
            _ => None,
        })
        .collect()
}

fn fast(sample: &Sample<'_>) -> Read {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let labels = sample.labels.map(|(name, value)| (text(name), text(value.0))).collect();
    (text(sample.name), labels, sample.value.to_bits(), sample.timestamp.map(f64::to_bits))
}

fn a_line() -> impl Strategy<Value = String> {
    let name = "(a|ab|b|x:y|9a|\\PC|)";
    let blanks = "[ \t]{0,2}";
    let label = format!(
        "{blanks}(a|b|\"a\"|\"ab\"|\"a.b\"|){blanks}(=?){blanks}(\"[ab{{}},= #]{{0,3}}\"|\"a\\\\\\\\\"|\"\\\\\"a\"|\"\\\\n\"|\"|)"
    );
    let labels = format!("(\\{{({label}{blanks},?){{0,3}}{blanks}\\}}?)?");
    let number = "(1|25|-1|1e3|0.5|NaN|\\+Inf|one|1_0|12345678|123456789012345678|)";
    let sample =
        format!("{blanks}{name}{blanks}{labels}{blanks}{number}([ \t]{{1,2}}{number})?{blanks}(# ?\\{{a=\"b\"\\}} 1)?\r?");
    let plain = "(a|ab|b)(\\{a=\"[a-z]{0,9}\"(,b=\"[a-z ]{0,9}\")?\\})? [0-9]{1,17}";
    let heading = "[ \t]{0,2}#[ \t]{0,2}TYPE[ \t]{1,2}(a|ab|\"a\"|\"ab\")[ \t]{1,2}(gauge|counter|GAUGE)[ \t]{0,2}\r?";
    prop_oneof![
        4 => proptest::string::string_regex(&sample).expect("a pattern"),
        2 => proptest::string::string_regex(plain).expect("a pattern"),
        2 => proptest::string::string_regex(heading).expect("a pattern"),
        1 => proptest::string::string_regex("# (HELP a a 1|EOF|a 1)").expect("a pattern"),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn both_readers_read_the_same(lines in proptest::collection::vec(a_line(), 0..8), end in "\n?") {
        let page = lines.join("\n") + &end;
        let expected = simple(&page);
        let all = exposition::lines(page.as_bytes());
        let seen: Vec<Read> = all.iter().flatten().map(fast).collect();
        let malformed = expected.iter().filter(|(read, _)| read.is_none()).count();
        prop_assert_eq!(&seen, &expected.iter().filter_map(|(read, _)| read.clone()).collect::<Vec<_>>());
        prop_assert_eq!(all.iter().filter(|read| read.is_none()).count(), malformed);

        let names = ["a", "ab"];
        let families = Families::new(names, vec![0]);
        let (mut found, mut kinds, mut broken) = (Vec::new(), Vec::new(), 0);
        for (which, seen) in families.find(without_mark(page.as_bytes())) {
            match seen {
                Found::Sample(sample) => {
                    prop_assert_eq!(sample.name, names[which].as_bytes());
                    found.push(fast(&sample));
                }
                Found::Type(kind) => kinds.push((names[which].to_owned(), String::from_utf8_lossy(kind).into_owned())),
                Found::Malformed => broken += 1,
            }
        }
        let known = |name: &str| names.contains(&name);
        prop_assert_eq!(found, seen.into_iter().filter(|read| known(&read.0)).collect::<Vec<_>>());
        prop_assert_eq!(kinds, types(&page).into_iter().filter(|(name, _)| name == "a").collect::<Vec<_>>());
        let lost = expected.iter().filter(|(read, name)| read.is_none() && name.as_deref().is_some_and(known)).count();
        prop_assert_eq!(broken, lost);
    }
}
