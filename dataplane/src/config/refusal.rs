//! What is wrong with a file, and the line and the key at which it stands.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// What is wrong and where, before it is known what the place is called.
pub(super) struct Refusal {
    pub span: Option<Range<usize>>,
    pub reason: String,
}

impl From<toml::de::Error> for Refusal {
    fn from(error: toml::de::Error) -> Self {
        Self { span: error.span(), reason: error.message().lines().collect::<Vec<_>>().join("; ") }
    }
}

impl Refusal {
    pub fn at(span: Range<usize>, reason: impl ToString) -> Self {
        Self { span: Some(span), reason: reason.to_string() }
    }

    pub fn locate(self, file: &Path, text: &str) -> ConfigError {
        let line = self.span.as_ref().map(|span| line_of(text, span.start));
        let key = self.span.as_ref().and_then(|span| key_at(text, span));
        ConfigError { file: file.to_owned(), line, key, reason: self.reason }
    }
}

/// The line, from 1, of the byte at `offset`.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|b| **b == b'\n').count()
}

/// The dotted key of the innermost entry that `span` lies in.
fn key_at(text: &str, span: &Range<usize>) -> Option<String> {
    let root = DeTable::parse(text).ok()?;
    let mut path = String::new();
    descend(root.get_ref(), span, &mut path);
    (!path.is_empty()).then_some(path)
}

fn descend(table: &DeTable<'_>, span: &Range<usize>, path: &mut String) {
    for (key, value) in table {
        if covers(&key.span(), span) || holds(value, span) {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(key.get_ref());
            return descend_value(value, span, path);
        }
    }
}

fn descend_value(value: &Spanned<DeValue<'_>>, span: &Range<usize>, path: &mut String) {
    match value.get_ref() {
        DeValue::Table(table) => descend(table, span, path),
        DeValue::Array(items) => {
            if let Some(i) = items.iter().position(|item| holds(item, span)) {
                path.push_str(&format!("[{i}]"));
                descend_value(&items[i], span, path);
            }
        }
        _ => {}
    }
}

/// True if `span` is in the value or in something inside it. (A `[[list]]` has no span of its own that covers
/// its entries, and a `[table]`'s covers only its header.)
fn holds(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> bool {
    covers(&value.span(), span)
        || match value.get_ref() {
            DeValue::Table(table) => {
                table.iter().any(|(key, value)| covers(&key.span(), span) || holds(value, span))
            }
            DeValue::Array(items) => items.iter().any(|item| holds(item, span)),
            _ => false,
        }
}

fn covers(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}
