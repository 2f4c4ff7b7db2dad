//! Asking the name servers of other endpoints.

use std::net::SocketAddr;

use futures::stream::{FuturesUnordered, StreamExt};
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{Record, RecordType};

use crate::dns::ask::{From, exchange, question};
use crate::dns::question::Reply;

/// Most records that are taken from a peer.
const MAX_RECORDS: usize = 256;

/// Asks all at once. The first with records counts; else what the peers together say, where `unknown` is what we know ourselves.
pub(super) async fn fan_out(from: &From, peers: &[SocketAddr], query: &Message, unknown: Reply) -> Reply {
    let Some(name) = query.queries.first().map(|asked| asked.name()) else { return unknown };
    let asked = |peer: &SocketAddr| {
        let (peer, mut question) = (*peer, question(query, name));
        // What a peer does not know itself it shall not ask others for.
        question.metadata.recursion_desired = false;
        async move { (peer, exchange(from, peer, &question).await) }
    };
    let mut answers: FuturesUnordered<_> = peers.iter().map(asked).collect();
    let mut code = unknown.message.metadata.response_code;
    let mut silent = false;
    while let Some((peer, answer)) = answers.next().await {
        match answer {
            Ok(answer) => {
                let records = records(query, &answer);
                if !records.is_empty() {
                    let mut reply = Reply::to(query, ResponseCode::NoError);
                    reply.message.answers = records;
                    return reply;
                }
                code = better(code, answer.metadata.response_code);
            }
            Err(error) => {
                silent = true;
                tracing::debug!(%peer, %error, "a peer's name server does not answer");
            }
        }
    }
    match code {
        // The one that is silent may be the one that has it.
        ResponseCode::NXDomain if silent => Reply::to(query, ResponseCode::ServFail),
        code if code == unknown.message.metadata.response_code => unknown,
        code => Reply::to(query, code),
    }
}

/// What two servers together say: that the name is there without such records, that it is not there, or that it is not theirs.
/// Go's servers say SERVFAIL of all names that they do not have.
fn better(one: ResponseCode, other: ResponseCode) -> ResponseCode {
    let rank = |code: ResponseCode| match code {
        ResponseCode::NoError => 2,
        ResponseCode::NXDomain => 1,
        _ => 0,
    };
    if rank(other) > rank(one) { other } else { one }
}

/// What answers the question, and nothing that the peer adds to it.
fn records(query: &Message, answer: &Message) -> Vec<Record> {
    let asked = &query.queries[0];
    if answer.metadata.response_code != ResponseCode::NoError {
        return Vec::new();
    }
    let fits = |record: &&Record| {
        let kind = record.record_type();
        record.name == *asked.name()
            && record.dns_class == asked.query_class()
            && matches!(kind, RecordType::A | RecordType::AAAA | RecordType::PTR)
            && (asked.query_type() == RecordType::ANY || asked.query_type() == kind)
    };
    answer.answers.iter().filter(fits).take(MAX_RECORDS).cloned().collect()
}
