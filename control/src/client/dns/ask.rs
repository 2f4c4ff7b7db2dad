//! One question to all servers that may know.

use std::net::SocketAddr;

use futures::stream::{FuturesUnordered, StreamExt};
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::Name;

use crate::dns::ask::{From, exchange, question};

/// What servers say.
pub(super) enum Found {
    /// One has an answer.
    Answer(Box<Message>),
    /// There is no such name, one says, and nobody knows better.
    NoName,
    /// Nobody answers, or nobody is able to.
    Nothing,
}

/// Asks all of them at once; the first that has an answer counts.
pub(super) async fn ask(from: &From, servers: &[SocketAddr], query: &Message, name: &Name) -> Found {
    let asked = |server: &SocketAddr| {
        let (server, question) = (*server, question(query, name));
        async move { exchange(from, server, &question).await }
    };
    let mut answers: FuturesUnordered<_> = servers.iter().map(asked).collect();
    let mut found = Found::Nothing;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) if answer.metadata.response_code == ResponseCode::NoError => {
                return Found::Answer(Box::new(answer));
            }
            Ok(answer) if answer.metadata.response_code == ResponseCode::NXDomain => found = Found::NoName,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "a name server gives no answer"),
        }
    }
    found
}
