//! Which policies a list selects.

use regex::Regex;

use super::rules::Rules;

/// Where a policy is switched on.
type Switch = fn(&mut Rules) -> &mut bool;

/// The built-in ones, by the paths that the Go components know them by.
const BUILT_IN: &[(&str, Switch)] = &[
    ("etc/nsm/opa/common/tokens_valid.rego", |rules| &mut rules.valid),
    ("etc/nsm/opa/common/tokens_expired.rego", |rules| &mut rules.expired),
    ("etc/nsm/opa/common/tokens_chained.rego", |rules| &mut rules.chained),
    ("etc/nsm/opa/server/prev_token_signed.rego", |rules| &mut rules.signed),
    ("etc/nsm/opa/client/next_token_signed.rego", |rules| &mut rules.signed),
    ("etc/nsm/opa/registry/client_allowed.rego", |rules| &mut rules.client_allowed),
];

/// A list of policies that can't be what was meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPolicies {
    /// No entry at all.
    #[error("the list of policies is empty; leave the variable out for the defaults")]
    Empty,
    /// An entry that is no regular expression.
    #[error("{mask:?} is no mask: {reason}")]
    Mask {
        /// Which.
        mask: String,
        /// What is wrong.
        reason: String,
    },
    /// An entry that selects nothing.
    #[error(
        "{0:?} selects no policy; the built-in ones are tokens_valid, tokens_expired, tokens_chained, prev_token_signed, next_token_signed and client_allowed"
    )]
    Nothing(String),
}

/// The policies that a list's entries select together.
pub(super) fn select(masks: &[String]) -> Result<Rules, BadPolicies> {
    let masks: Vec<&str> = masks.iter().map(|mask| mask.trim()).filter(|mask| !mask.is_empty()).collect();
    if masks.is_empty() {
        return Err(BadPolicies::Empty);
    }
    let mut rules = Rules::default();
    for mask in masks {
        let fits = matcher(mask)?;
        let mut any = false;
        for (path, rule) in BUILT_IN.iter().filter(|(path, _)| fits(path)) {
            tracing::debug!(mask, path, "a policy is asked");
            (*rule(&mut rules), any) = (true, true);
        }
        if !any {
            return Err(BadPolicies::Nothing(mask.to_owned()));
        }
    }
    Ok(rules)
}

/// A name without a path is that policy; anything else is a regular expression over the whole path.
fn matcher(mask: &str) -> Result<impl Fn(&str) -> bool, BadPolicies> {
    let named = !mask.contains('/') && !mask.contains('*');
    let name = mask.trim_end_matches(".rego").to_owned();
    let bad = |error: regex::Error| BadPolicies::Mask { mask: mask.to_owned(), reason: error.to_string() };
    let whole = Regex::new(&format!("^(?:{})$", mask.trim_start_matches('/'))).map_err(bad)?;
    Ok(move |path: &str| {
        let stem = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rego");
        if named { stem == name } else { whole.is_match(path) }
    })
}
