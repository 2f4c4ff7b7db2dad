//! How the Go components write values in environment variables.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use crate::transport::{BadTarget, Target};

/// The units of Go's `time.ParseDuration`, in nanoseconds.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration as Go writes it: `10m`, `1h30m`, `250ms`, `1.5s`.
///
/// # Errors
/// The reason. A number without unit is refused: whether seconds or milliseconds are meant can't be known.
pub fn duration(text: &str) -> Result<Duration, String> {
    let hint = "write it as 750ms, 15s, 10m or 1h30m";
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(format!("no duration; {hint}"));
    }
    if rest.starts_with('-') {
        return Err(format!("a duration can't be negative; {hint}"));
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        if unit.is_empty() {
            return Err(format!("{number} has no unit; {hint}"));
        }
        let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("{unit:?} is no unit; {hint}"));
        };
        nanos += scaled(number, *scale).ok_or_else(|| format!("{number:?} is no number; {hint}"))?;
        rest = tail;
    }
    // Go's durations are nanoseconds in an i64: what it refuses as too long, we refuse.
    let nanos = i64::try_from(nanos).map_err(|_| "longer than 292 years".to_owned())?;
    Ok(Duration::from_nanos(nanos.unsigned_abs()))
}

/// `number`, which may have a fraction, times `scale`; None if it is none, or far too long.
fn scaled(number: &str, scale: u64) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()?.into() };
    // Digits below a nanosecond do not count.
    let fraction = &fraction[..fraction.len().min(18)];
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse::<u64>().ok()?.into() };
    let divisor = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(scale.into())?.checked_add(part * u128::from(scale) / divisor)
}

/// As [`duration`], and a bare number is seconds: the variables of NSM before v1 were described that way.
///
/// # Errors
/// The reason.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim().parse::<u32>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
        Err(_) => duration(text),
    }
}

/// Reads a boolean as Go's `strconv.ParseBool` does.
///
/// # Errors
/// The reason.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("not a boolean; write true or false".to_owned()),
    }
}

/// Values separated by commas. Nothing is an empty list. Commas inside `[…]` do not separate: `[a,b],c` has two items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Deref for List<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T: FromStr> FromStr for List<T>
where
    T::Err: fmt::Display,
{
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let items = split(text)?;
        let item = |item: &str| {
            let item = item.trim();
            if item.is_empty() {
                return Err("an empty item between commas".to_owned());
            }
            item.parse().map_err(|error| format!("item {item:?}: {error}"))
        };
        items.into_iter().map(item).collect::<Result<_, _>>().map(Self)
    }
}

/// Splits at commas that are not in brackets.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut items, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1).ok_or("a ] without its [")?,
            ',' if depth == 0 => {
                items.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err("a [ without its ]".to_owned());
    }
    items.push(&text[start..]);
    Ok(items)
}

/// Labels: `app:web,tier:front`. `=` is taken for `:`, because people write it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(pub BTreeMap<String, String>);

impl Deref for Labels {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl FromStr for Labels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut labels = BTreeMap::new();
        if text.trim().is_empty() {
            return Ok(Self(labels));
        }
        for pair in text.split(',') {
            let parts = pair.split_once([':', '=']);
            let Some((key, value)) = parts.map(|(key, value)| (key.trim(), value.trim())) else {
                return Err(format!("{pair:?} is no label; write key:value,key:value"));
            };
            if key.is_empty() || value.contains([':', '=']) {
                return Err(format!("{pair:?} is no label; write key:value,key:value"));
            }
            if labels.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(format!("{key:?} is there twice"));
            }
        }
        Ok(Self(labels))
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.0.iter().map(|(key, value)| format!("{key}:{value}")).collect();
        f.write_str(&pairs.join(","))
    }
}

/// A value, or nothing where the variable is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maybe<T>(pub Option<T>);

impl<T> Default for Maybe<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Deref for Maybe<T> {
    type Target = Option<T>;

    fn deref(&self) -> &Option<T> {
        &self.0
    }
}

impl<T: FromStr> FromStr for Maybe<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text.trim().is_empty() { Ok(Self(None)) } else { text.parse().map(|value| Self(Some(value))) }
    }
}

impl FromStr for Target {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<Self, BadTarget> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let cases = [
            ("10m", 600_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("250ms", 250_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1us", 1_000),
            ("1µs", 1_000),
            ("0", 0),
            ("0s", 0),
            ("1h1m1s1ms1us1ns", 3_661_001_001_001),
        ];
        for (text, nanos) in cases {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn a_bare_number_and_nonsense_are_refused_with_a_way_out() {
        for text in ["5", "750", "", "-1s", "5 s", "s", "1x", "1.2.3s", ".s", "1s5", "99999999999999999999h"]
        {
            let error = duration(text).unwrap_err();
            assert!(error.contains("750ms"), "{text}: {error}");
        }
        assert!(duration("9999999h").unwrap_err().contains("292 years"));
        assert_eq!(duration("5").unwrap_err(), "5 has no unit; write it as 750ms, 15s, 10m or 1h30m");
    }

    #[test]
    fn booleans_are_gos() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(boolean(text), Ok(true));
            assert_eq!(boolean(&text.replace(['t', 'T'], "f").replace('1', "0")).is_ok(), text.len() == 1);
        }
        for text in ["", "yes", "on", "tRUE", "2", " true"] {
            assert!(boolean(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn lists_are_split_at_commas_outside_brackets() {
        let list = |text: &str| text.parse::<List<String>>().map(|list| list.0);
        assert_eq!(list(""), Ok(vec![]));
        assert_eq!(list("a"), Ok(vec!["a".to_owned()]));
        assert_eq!(list(" a, b "), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(list("[a,b],c"), Ok(vec!["[a,b]".to_owned(), "c".to_owned()]));
        for text in ["a,", ",", "[a,b", "a]"] {
            assert!(list(text).is_err(), "{text}");
        }
        let numbers = "1,x".parse::<List<u16>>().unwrap_err();
        assert!(numbers.starts_with("item \"x\": "), "{numbers}");
    }

    #[test]
    fn labels_are_pairs() {
        let labels: Labels = "app:web, tier=front".parse().unwrap();
        assert_eq!(labels.to_string(), "app:web,tier:front");
        assert_eq!("".parse::<Labels>().unwrap().0.len(), 0);
        for text in ["app", "app:web,", ":x", "a:b:c", "a:1,a:2"] {
            assert!(text.parse::<Labels>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_empty_target_is_none() {
        assert_eq!("".parse::<Maybe<Target>>(), Ok(Maybe(None)));
        assert_eq!("registry:5002".parse::<Maybe<Target>>().unwrap().0, Target::parse("registry:5002").ok());
        assert!("nowhere".parse::<Maybe<Target>>().is_err());
    }
}
