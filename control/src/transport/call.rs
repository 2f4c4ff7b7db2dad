//! What a call's metadata says.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::Peer;
use crate::chain::Origin;
use crate::identity::{Token, jwt};
use crate::obs::Ration;

/// Metadata: the caller's token, made for us.
pub const TOKEN: &str = "nsm-client-token";
/// Metadata: its end, RFC 3339 with nanoseconds.
pub const TOKEN_EXPIRES: &str = "nsm-client-token-expires";
/// How long a call has time if it does not say.
pub const DEFAULT_TIME: Duration = Duration::from_secs(15);
/// The longest time that a unary call gets.
pub const MAX_TIME: Duration = Duration::from_secs(60);

/// Who calls, with the token that came along. A token that is missing, doubled or unreadable is none: policies decide what that
/// means, and the log says why.
///
/// # Errors
/// INTERNAL if the request did not come by [`serve`](super::serve).
pub fn origin<T>(request: &Request<T>) -> Result<Origin, Status> {
    let peer = peer(request)?;
    let token = match token(request.metadata(), &peer) {
        Ok(token) => Some(token),
        // Without TLS there are none, and nothing to say about it.
        Err(_) if peer.leaf.is_none() => None,
        Err(reason) => {
            static LINES: Ration = Ration::new();
            if let Some(withheld) = LINES.take() {
                let id = peer.id.as_ref().map(ToString::to_string);
                tracing::info!(peer = id, address = ?peer.address, %reason, withheld, "a call without a usable token");
            }
            None
        }
    };
    Ok(Origin::Peer { peer, token })
}

/// The other end of the connection that a request came by.
///
/// # Errors
/// INTERNAL if it did not come by [`serve`](super::serve).
pub fn peer<T>(request: &Request<T>) -> Result<Arc<Peer>, Status> {
    let peer = request.extensions().get::<Arc<Peer>>();
    peer.cloned().ok_or_else(|| Status::internal("a call that came by no connection"))
}

fn token(metadata: &MetadataMap, peer: &Peer) -> Result<Token, String> {
    let jwt = single(metadata, TOKEN)?;
    let claims = jwt::read(jwt).map_err(|error| format!("{TOKEN}: {error}"))?;
    let said = single(metadata, TOKEN_EXPIRES)?;
    let said = time(said).ok_or_else(|| format!("{TOKEN_EXPIRES} is no RFC 3339 time with an offset"))?;
    let ends = i64::try_from(claims.exp).map_err(|_| format!("{TOKEN}: exp is beyond all time"))?;
    let claimed = Timestamp { seconds: ends, nanos: 0 };
    let proven = peer.not_after.map(|end: SystemTime| Timestamp::from(end));
    let all = [Some(said), Some(claimed), proven];
    let expires = all.into_iter().flatten().min_by_key(|time| (time.seconds, time.nanos));
    Ok(Token { jwt: jwt.into(), expires: expires.unwrap_or(claimed) })
}

/// RFC 3339 as Go writes it: with a `T` and an offset, both of which prost's own reader forgives the lack of.
fn time(text: &str) -> Option<Timestamp> {
    let date_ends = text.get(10..11)? == "T";
    let clock = text.get(11..)?;
    let offset = clock.ends_with('Z') || clock.contains(['+', '-']);
    if date_ends && offset { text.parse().ok() } else { None }
}

/// The only value of a key.
fn single<'a>(metadata: &'a MetadataMap, key: &str) -> Result<&'a str, String> {
    let mut values = metadata.get_all(key).iter();
    match (values.next(), values.next()) {
        (None, _) => Err(format!("{key} is missing")),
        (Some(_), Some(_)) => Err(format!("{key} is there more than once")),
        (Some(value), None) => value.to_str().map_err(|_| format!("{key} is not plain text")),
    }
}

/// How long the caller waits for its answer (`grpc-timeout`): 15 s if it does not say or says nonsense, 60 s at most.
pub fn time_left<T>(request: &Request<T>) -> Duration {
    let said = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
    said.and_then(parse_timeout).unwrap_or(DEFAULT_TIME).min(MAX_TIME)
}

/// gRPC's `TimeoutValue TimeoutUnit`: at most 8 digits and one of `HMSmun`.
pub(super) fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}
