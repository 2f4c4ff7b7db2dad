//! The built-in policies.

use std::time::SystemTime;

use crate::identity::jwt::{self, Claims};
use crate::transport::Peer;

/// The tokens of a path, in its order.
pub(super) type Tokens<'a> = Vec<&'a str>;

/// Which policies are asked. `signed` is `prev_token_signed` of calls, `next_token_signed` of answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub valid: bool,
    pub expired: bool,
    pub chained: bool,
    pub signed: bool,
    pub client_allowed: bool,
}

/// Which policy said no, and why. Holds no token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Denied {
    pub policy: &'static str,
    pub reason: String,
}

impl Rules {
    pub fn standard() -> Self {
        Self { valid: true, expired: true, chained: true, signed: true, client_allowed: true }
    }

    /// Asks all. `signed` says which token must be by `peer`, and the policy's name.
    pub fn check(
        &self,
        tokens: &Tokens<'_>,
        signed: Option<(Option<usize>, &'static str)>,
        peer: &Peer,
    ) -> Result<(), Denied> {
        if !(self.valid || self.expired || self.chained || self.signed) {
            return Ok(());
        }
        let read = read_all(tokens);
        if self.valid {
            all_read(&read)?;
        }
        if self.expired {
            none_expired(&read, SystemTime::now())?;
        }
        if self.chained {
            each_made_for_the_next(&read)?;
        }
        match signed.filter(|_| self.signed) {
            Some((index, policy)) => signed_by(index.and_then(|index| tokens.get(index)), policy, peer),
            None => Ok(()),
        }
    }
}

type Read = Vec<Result<Claims, jwt::BadToken>>;

fn read_all(tokens: &Tokens<'_>) -> Read {
    tokens.iter().map(|token| jwt::read(token)).collect()
}

fn denied(policy: &'static str, reason: String) -> Result<(), Denied> {
    Err(Denied { policy, reason })
}

fn all_read(read: &Read) -> Result<(), Denied> {
    match read.iter().enumerate().find_map(|(index, read)| Some((index, read.as_ref().err()?))) {
        Some((index, error)) => denied("tokens_valid", format!("the token of segment {index}: {error}")),
        None => Ok(()),
    }
}

/// A token that can't be read is no token in time, as Go's policy has it.
fn none_expired(read: &Read, now: SystemTime) -> Result<(), Denied> {
    match read.iter().position(|read| read.as_ref().map_or(true, |claims| claims.expired(now))) {
        Some(index) => denied("tokens_expired", format!("the token of segment {index} has ended")),
        None => Ok(()),
    }
}

fn each_made_for_the_next(read: &Read) -> Result<(), Denied> {
    let made_for = |pair: &[Result<Claims, _>]| match pair {
        [Ok(this), Ok(next)] => this.aud.contains(&next.sub),
        _ => false,
    };
    let Some(index) = read.windows(2).position(|pair| !made_for(pair)) else { return Ok(()) };
    let names = |index: usize| read[index].as_ref().map_or("?", |claims| claims.sub.as_str());
    denied(
        "tokens_chained",
        format!("the token of segment {index} ({}) is not made for {}", names(index), names(index + 1)),
    )
}

/// Beyond Go's policy the token must name who signed it: `sub` is the ID of the peer's certificate.
fn signed_by(token: Option<&&str>, policy: &'static str, peer: &Peer) -> Result<(), Denied> {
    let (Some(leaf), Some(id)) = (&peer.leaf, &peer.id) else {
        return denied(policy, "the peer showed no certificate".to_owned());
    };
    let Some(token) = token else { return denied(policy, "the path has no segment of the peer".to_owned()) };
    match jwt::verify(token, leaf) {
        Ok(claims) if claims.sub == id.to_string() => Ok(()),
        Ok(claims) => {
            denied(policy, format!("the token is in the name of {}, and the peer is {id}", claims.sub))
        }
        Err(error) => denied(policy, format!("the peer's token: {error}")),
    }
}
