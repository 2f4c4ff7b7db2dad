//! Labels and selectors. A selector's value may be a template that is filled with the client's labels.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Labels of a client or an endpoint, or what a selector asks of them.
pub type Labels = BTreeMap<String, String>;

/// Why labels do not satisfy a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// There are fewer labels than the selector asks for.
    #[error("it has {have} labels where {want} are asked for")]
    TooFew {
        /// How many there are.
        have: usize,
        /// How many the selector has.
        want: usize,
    },
    /// A label has another value, or is missing.
    #[error("{key}={} where {key}={want} is asked for", have.as_deref().unwrap_or("(not set)"))]
    Value {
        /// The label.
        key: String,
        /// What is asked for, templates filled.
        want: String,
        /// What is there.
        have: Option<String>,
    },
    /// The selector's template asks for a label that the client does not have.
    #[error("{key}={template} can't be filled: the client has no label {missing}")]
    Unfilled {
        /// The label.
        key: String,
        /// As the network service has it.
        template: String,
        /// The client's label that is not there.
        missing: String,
    },
}

/// Whether `have` satisfies all of `selector`, whose templates are filled with the labels of `client`. As in Go, a label that is
/// missing is equal to the empty text as long as there are not fewer labels than the selector has.
///
/// # Errors
/// The first [`Mismatch`].
pub fn satisfies(have: &Labels, selector: &Labels, client: &Labels) -> Result<(), Mismatch> {
    if have.len() < selector.len() {
        return Err(Mismatch::TooFew { have: have.len(), want: selector.len() });
    }
    for (key, want) in selector {
        let value = have.get(key).map_or("", String::as_str);
        if value == want {
            continue;
        }
        let filled = fill(want, client).map_err(|missing| Mismatch::Unfilled {
            key: key.clone(),
            template: want.clone(),
            missing,
        })?;
        if value != filled {
            return Err(Mismatch::Value {
                key: key.clone(),
                want: filled.into_owned(),
                have: have.get(key).cloned(),
            });
        }
    }
    Ok(())
}

/// Fills `{{.key}}`, `{{ .key }}` and `{{ index . "key" }}` with labels. Text with any other action in it stays as it is: nothing
/// is evaluated.
///
/// # Errors
/// The name of a label that is not there: such a template matches nothing.
pub fn fill<'a>(template: &'a str, labels: &Labels) -> Result<Cow<'a, str>, String> {
    if !template.contains("{{") {
        return Ok(Cow::Borrowed(template));
    }
    let (mut filled, mut rest) = (String::new(), template);
    while let Some((before, action)) = rest.split_once("{{") {
        let Some((key, after)) =
            action.split_once("}}").and_then(|(text, after)| Some((key_of(text)?, after)))
        else {
            return Ok(Cow::Borrowed(template));
        };
        filled.push_str(before);
        filled.push_str(labels.get(key).ok_or_else(|| key.to_owned())?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(Cow::Owned(filled))
}

/// The label that an action names: `.key`, or `index . "key"` for keys that are not plain words.
fn key_of(action: &str) -> Option<&str> {
    let action = action.trim();
    if let Some(key) = action.strip_prefix('.') {
        let plain = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_');
        return plain.then_some(key);
    }
    let quoted = action.strip_prefix("index")?.trim_start().strip_prefix('.')?.trim_start();
    let key = quoted.strip_prefix('"')?.strip_suffix('"')?;
    (!key.contains(['"', '\\'])).then_some(key)
}

/// Labels as people write them: `a=1, b=2`.
pub fn shown(labels: &Labels) -> String {
    if labels.is_empty() {
        return "no labels".to_owned();
    }
    let all: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn templates_take_the_clients_labels() {
        let client = labels(&[("nodeName", "node-1"), ("x y/z", "odd"), ("a", "1")]);
        let cases = [
            ("plain", "plain"),
            ("{{.nodeName}}", "node-1"),
            ("{{ .nodeName }}", "node-1"),
            ("{{ index . \"x y/z\" }}", "odd"),
            ("{{index . \"a\"}}-{{.a}}!", "1-1!"),
            // Not ours to evaluate.
            ("{{ if .a }}x{{ end }}", "{{ if .a }}x{{ end }}"),
            ("{{.a", "{{.a"),
            ("{{.a.b}}", "{{.a.b}}"),
            ("{{ printf \"%s\" .a }}", "{{ printf \"%s\" .a }}"),
        ];
        for (template, filled) in cases {
            assert_eq!(fill(template, &client).unwrap(), filled, "{template}");
        }
        assert_eq!(fill("{{.zone}}", &client).unwrap_err(), "zone");
        assert_eq!(fill("{{ index . \"zone\" }}", &client).unwrap_err(), "zone");
    }

    #[test]
    fn a_selector_is_satisfied_by_more_labels_and_refused_with_the_reason() {
        let client = labels(&[("nodeName", "node-1")]);
        let have = labels(&[("app", "foo"), ("node", "node-1")]);
        assert_eq!(satisfies(&have, &labels(&[]), &client), Ok(()));
        assert_eq!(satisfies(&have, &labels(&[("app", "foo")]), &client), Ok(()));
        assert_eq!(satisfies(&have, &labels(&[("node", "{{.nodeName}}")]), &client), Ok(()));
        let said =
            |selector: &[(&str, &str)]| satisfies(&have, &labels(selector), &client).unwrap_err().to_string();
        assert_eq!(said(&[("app", "bar")]), "app=foo where app=bar is asked for");
        assert_eq!(said(&[("tier", "1")]), "tier=(not set) where tier=1 is asked for");
        assert_eq!(
            said(&[("node", "{{.zone}}")]),
            "node={{.zone}} can't be filled: the client has no label zone"
        );
        assert_eq!(said(&[("a", "1"), ("b", "2"), ("c", "3")]), "it has 2 labels where 3 are asked for");
    }

    proptest! {
        #[test]
        fn labels_satisfy_every_part_of_themselves(
            have in proptest::collection::btree_map("[a-d]{1,2}", "[a-c{}.]{0,4}", 0..5),
            keep in any::<u8>(),
        ) {
            let part: Labels = have.iter().enumerate().filter(|(i, _)| keep & (1 << i) != 0)
                .map(|(_, (key, value))| (key.clone(), value.clone())).collect();
            prop_assert_eq!(satisfies(&have, &part, &Labels::new()), Ok(()));
        }

        #[test]
        fn filling_never_panics_and_leaves_plain_text(text in ".{0,40}", value in ".{0,8}") {
            let client = labels(&[("a", &value)]);
            let filled = fill(&text, &client);
            if !text.contains("{{") {
                prop_assert_eq!(filled.unwrap(), text.as_str());
            }
        }
    }
}
