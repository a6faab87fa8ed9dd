//! Edits in a JSON text: finds, sets and removes members by their position. All other bytes stay unchanged. Pure.
//!
//! All functions expect valid JSON: they search for the ends of values and report no errors.

use std::{borrow::Cow, ops::Range};

/// A member of an object.
pub struct Member<'t> {
    /// The member's name.
    pub key: Cow<'t, str>,
    /// Offset of the member.
    pub start: usize,
    /// Range of the value.
    pub value: Range<usize>,
}

/// Skips blanks.
pub fn blanks(text: &str, mut at: usize) -> usize {
    while text.as_bytes().get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// The start of the next member or element after a value, or the end of the object or array.
pub fn next(text: &str, end: usize) -> usize {
    let at = blanks(text, end);
    if text.as_bytes().get(at) == Some(&b',') { blanks(text, at + 1) } else { at }
}

/// The end of the string at this position.
pub fn string_end(text: &str, mut at: usize) -> usize {
    let bytes = text.as_bytes();
    at += 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The text without blanks between its tokens.
pub fn compact(text: &str) -> String {
    let mut compact = String::with_capacity(text.len());
    let mut at = blanks(text, 0);
    while at < text.len() {
        let end = if text.as_bytes()[at] == b'"' {
            string_end(text, at).min(text.len())
        } else {
            text[at..].find(|c: char| c.is_ascii_whitespace() || c == '"').map_or(text.len(), |next| at + next)
        };
        compact.push_str(&text[at..end]);
        at = blanks(text, end);
    }
    compact
}

/// The end of the value at this position.
pub fn value_end(text: &str, mut at: usize) -> usize {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = string_end(text, at),
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                at += 1;
                depth = depth.saturating_sub(1);
            }
            b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' => {
                at += 1;
                continue;
            }
            _ => {
                while bytes.get(at).is_some_and(|byte| !matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t')) {
                    at += 1;
                }
            }
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// The content of a string; any other text is returned unchanged.
pub fn unescaped(text: &str) -> Cow<'_, str> {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if inner.contains('\\') { serde_json::from_str(text).map_or(Cow::Borrowed(inner), Cow::Owned) } else { Cow::Borrowed(inner) }
}

/// The members of the object at this position, in order; none if it is not an object.
pub fn members(text: &str, start: usize) -> Vec<Member<'_>> {
    let mut members = Vec::new();
    if text.as_bytes().get(start) != Some(&b'{') {
        return members;
    }
    let mut at = blanks(text, start + 1);
    while text.as_bytes().get(at) == Some(&b'"') {
        let key_end = string_end(text, at);
        let value_start = blanks(text, blanks(text, key_end) + 1);
        let end = value_end(text, value_start);
        members.push(Member { key: unescaped(&text[at..key_end]), start: at, value: value_start..end });
        at = next(text, end);
    }
    members
}

/// The elements of the array at this position; none if it is not an array.
pub fn elements(text: &str, start: usize) -> Vec<Range<usize>> {
    let mut elements = Vec::new();
    if text.as_bytes().get(start) != Some(&b'[') {
        return elements;
    }
    let mut at = blanks(text, start + 1);
    while text.as_bytes().get(at).is_some_and(|byte| *byte != b']') {
        let end = value_end(text, at);
        elements.push(at..end);
        at = next(text, end);
    }
    elements
}

/// The value of a member; the last one of several with the same name, as in every parser.
pub fn member(text: &str, object: usize, key: &str) -> Option<Range<usize>> {
    members(text, object).into_iter().rev().find(|member| member.key == key).map(|member| member.value)
}

/// The value at the end of a path through objects.
pub fn at(text: &str, object: usize, way: &[&str]) -> Option<Range<usize>> {
    let (first, rest) = way.split_first()?;
    let value = member(text, object, first)?;
    if rest.is_empty() { Some(value) } else { at(text, value.start, rest) }
}

fn is_object(text: &str) -> bool {
    text.starts_with('{')
}

/// The object with a member set. `fresh` is the initial text of a missing object on the path.
pub fn set(object: &str, way: &[&str], value: &str, fresh: &dyn Fn(&str) -> &'static str) -> String {
    let Some((first, rest)) = way.split_first() else { return object.to_owned() };
    let there = member(object, 0, first);
    let new = if rest.is_empty() {
        value.to_owned()
    } else {
        let inner = there.clone().map(|span| &object[span]).filter(|text| is_object(text));
        set(inner.unwrap_or_else(|| fresh(first)), rest, value, fresh)
    };
    if let Some(span) = there {
        return spliced(object, span, &new);
    }
    let key = serde_json::Value::from(*first);
    match members(object, 0).last() {
        Some(last) => spliced(object, last.value.end..last.value.end, &format!(",{key}:{new}")),
        None => spliced(object, 1..1, &format!("{key}:{new}")),
    }
}

/// The object without a member, and without the objects on the path that have no effect any more.
pub fn unset(object: &str, way: &[&str], is_idle: &dyn Fn(&str, &str) -> bool) -> String {
    let Some((first, rest)) = way.split_first() else { return object.to_owned() };
    if rest.is_empty() {
        return without(object, first);
    }
    let Some(span) = member(object, 0, first) else { return object.to_owned() };
    if !is_object(&object[span.clone()]) {
        return object.to_owned();
    }
    let inner = unset(&object[span.clone()], rest, is_idle);
    if is_idle(first, &inner) { without(object, first) } else { spliced(object, span, &inner) }
}

fn without(object: &str, key: &str) -> String {
    let mut text = object.to_owned();
    loop {
        let all = members(&text, 0);
        let Some(n) = all.iter().position(|member| member.key == key) else { return text };
        let span = match (n.checked_sub(1).and_then(|before| all.get(before)), all.get(n + 1)) {
            (Some(before), _) => before.value.end..all[n].value.end,
            (None, Some(next)) => all[n].start..next.start,
            (None, None) => all[n].start..all[n].value.end,
        };
        text = spliced(&text, span, "");
    }
}

fn spliced(text: &str, span: Range<usize>, new: &str) -> String {
    [&text[..span.start], new, &text[span.end..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(_: &str) -> &'static str {
        "{}"
    }

    fn is_empty(_: &str, inner: &str) -> bool {
        members(inner, 0).is_empty()
    }

    #[test]
    fn a_member_is_set_and_nothing_else_changes() {
        for (before, way, after) in [
            (r#"{ "b" : 1.0e3 , "a":"x" }"#, &["a"][..], r#"{ "b" : 1.0e3 , "a":7 }"#),
            (r#"{"b":18446744073709551616}"#, &["a"], r#"{"b":18446744073709551616,"a":7}"#),
            ("{}", &["a", "b"], r#"{"a":{"b":7}}"#),
            (r#"{"a":null,"c":[1,{"a":2}]}"#, &["a", "b"], r#"{"a":{"b":7},"c":[1,{"a":2}]}"#),
            (r#"{"a":1,"a":2}"#, &["a"], r#"{"a":1,"a":7}"#),
            (r#"{"\u0061":"}\"{"}"#, &["a"], r#"{"\u0061":7}"#),
        ] {
            assert_eq!(set(before, way, "7", &fresh), after);
        }
    }

    #[test]
    fn a_member_is_removed_with_its_comma() {
        for (before, way, after) in [
            (r#"{"a":1}"#, &["a"][..], "{}"),
            (r#"{ "a":1, "b":2 }"#, &["a"], r#"{ "b":2 }"#),
            (r#"{"b":2,"a":1}"#, &["a"], r#"{"b":2}"#),
            (r#"{"c":{"a":1},"b":2}"#, &["c", "a"], r#"{"b":2}"#),
            (r#"{"c":{"a":1,"d":2}}"#, &["c", "a"], r#"{"c":{"d":2}}"#),
            (r#"{"c":7}"#, &["c", "a"], r#"{"c":7}"#),
            (r#"{"a":1,"b":2,"a":3}"#, &["a"], r#"{"b":2}"#),
        ] {
            assert_eq!(unset(before, way, &is_empty), after);
        }
    }

    fn json() -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "\\PC{0,6}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                proptest::collection::vec(("[ab\"\\\\]{1,2}", inner), 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest::proptest! {
        #[test]
        fn what_is_found_and_changed_is_what_a_parser_finds_and_changes(value in json(), key in "[ab\"\\\\]{1,2}", pretty in proptest::bool::ANY) {
            let mut object = value;
            if !object.is_object() {
                object = serde_json::json!({"a": object});
            }
            let text = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) }.expect("JSON");
            let found = member(&text, 0, &key).map(|span| serde_json::from_str::<serde_json::Value>(&text[span]).expect("JSON"));
            proptest::prop_assert_eq!(found.as_ref(), object.get(&key));
            let after: serde_json::Value = serde_json::from_str(&set(&text, &[&key, "z"], "7", &fresh)).expect("JSON");
            let mut expected = object.clone();
            let inner = &mut expected[&key];
            if !inner.is_object() {
                *inner = serde_json::json!({});
            }
            inner["z"] = 7.into();
            proptest::prop_assert_eq!(after, expected);
            let removed: serde_json::Value = serde_json::from_str(&unset(&text, &[&key], &is_empty)).expect("JSON");
            object.as_object_mut().expect("an object").remove(&key);
            proptest::prop_assert_eq!(removed, object);
        }
    }
}
