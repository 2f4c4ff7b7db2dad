//! Messages of strangers: which of them are questions.

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};

/// The largest message by UDP that we send or ask for: what fits into any path's packets (DNS flag day 2020).
pub(crate) const PAYLOAD: u16 = 1232;
/// The least that any client takes by UDP (RFC 1035, 4.2.1).
const LEAST: u16 = 512;
/// A message's header (RFC 1035, 4.1.1).
const HEADER: usize = 12;

/// What a message is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Read {
    /// One question, by the rules.
    Question(Message),
    /// To be answered by this, which says why there is no answer.
    Refused(Reply),
    /// An answer, or nothing that an answer could be addressed to: whoever answers such messages can be made to talk to itself.
    Silence,
}

/// An answer, and how much of it its receiver takes in a datagram.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    /// The answer.
    pub message: Message,
    /// Bytes.
    pub most: u16,
}

/// Reads a message.
pub(crate) fn read(bytes: &[u8]) -> Read {
    if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
        return Read::Silence;
    }
    let Ok(query) = Message::from_vec(bytes) else {
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        let op_code = OpCode::from_u8((bytes[2] >> 3) & 0x0f);
        let message = Message::error_msg(id, op_code, ResponseCode::FormErr);
        return Read::Refused(Reply { message, most: LEAST });
    };
    if query.metadata.message_type != MessageType::Query {
        return Read::Silence;
    }
    let code = if query.metadata.op_code != OpCode::Query {
        ResponseCode::NotImp
    } else if query.version() > 0 {
        ResponseCode::BADVERS
    } else if query.queries.len() != 1 {
        ResponseCode::FormErr
    } else {
        return Read::Question(query);
    };
    Read::Refused(Reply::to(&query, code))
}

impl Reply {
    /// An answer without records.
    pub fn to(query: &Message, code: ResponseCode) -> Self {
        let mut message = Message::error_msg(query.metadata.id, query.metadata.op_code, code);
        message.metadata.recursion_desired = query.metadata.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = query.metadata.checking_disabled;
        // Several are no question that could be answered, and could be more than fits.
        message.queries.extend(query.queries.first().filter(|_| query.queries.len() == 1).cloned());
        Self::with(query, message)
    }

    /// This message, as an answer to that question: with EDNS if the question has it (RFC 6891, 6.1.1).
    pub fn with(query: &Message, mut message: Message) -> Self {
        message.edns = query.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD).set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        Self { message, most: query.max_payload().clamp(LEAST, PAYLOAD) }
    }

    /// As a datagram: without its records, and saying so, if it is too large.
    pub fn datagram(&self) -> Option<Vec<u8>> {
        let bytes = self.message.to_vec().ok()?;
        if bytes.len() <= usize::from(self.most) {
            Some(bytes)
        } else {
            self.message.truncate().to_vec().ok()
        }
    }

    /// As TCP has it: behind its length.
    pub fn framed(&self) -> Option<Vec<u8>> {
        let bytes = self.message.to_vec().ok()?;
        let length = u16::try_from(bytes.len()).ok()?;
        Some([&length.to_be_bytes()[..], &bytes].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_resolver::proto::op::Query;
    use hickory_resolver::proto::rr::RecordType;

    fn query() -> Message {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query("a.test.".parse().unwrap(), RecordType::A));
        query
    }

    fn refused(bytes: &[u8]) -> Reply {
        match read(bytes) {
            Read::Refused(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_question_is_one_with_one_name() {
        assert_eq!(read(&query().to_vec().unwrap()), Read::Question(query()));
        let mut two = query();
        two.add_query(query().queries[0].clone());
        assert_eq!(refused(&two.to_vec().unwrap()).message.metadata.response_code, ResponseCode::FormErr);
        let mut none = query();
        none.queries.clear();
        assert_eq!(refused(&none.to_vec().unwrap()).message.metadata.response_code, ResponseCode::FormErr);
    }

    #[test]
    fn what_can_be_answered_is_told_what_is_wrong_and_the_rest_hears_nothing() {
        let mut broken = query().to_vec().unwrap();
        broken.truncate(15);
        let reply = refused(&broken);
        assert_eq!(
            (reply.message.metadata.id, reply.message.metadata.response_code),
            (7, ResponseCode::FormErr)
        );
        let mut update = query();
        update.metadata.op_code = OpCode::Update;
        assert_eq!(refused(&update.to_vec().unwrap()).message.metadata.response_code, ResponseCode::NotImp);
        let mut newer = query();
        let mut edns = Edns::new();
        edns.set_version(1);
        newer.set_edns(edns);
        let reply = refused(&newer.to_vec().unwrap());
        let seen = Message::from_vec(&reply.datagram().unwrap()).unwrap();
        // 16, which without a signature is BADVERS.
        assert_eq!((u16::from(seen.metadata.response_code), seen.version()), (16, 0));
        let mut answer = query();
        answer.metadata.message_type = MessageType::Response;
        for silent in [answer.to_vec().unwrap(), b"short".to_vec(), vec![0xff; 40], Vec::new()] {
            assert_eq!(read(&silent), Read::Silence);
        }
        // Two OPT records (RFC 6891, 6.1.1).
        let mut edns = query();
        edns.set_edns(Edns::new());
        let mut twice = edns.to_vec().unwrap();
        let opt = twice[twice.len() - 11..].to_vec();
        twice.extend(opt);
        twice[11] = 2;
        assert_eq!(refused(&twice).message.metadata.response_code, ResponseCode::FormErr);
    }

    #[test]
    fn a_reply_fits_what_its_receiver_takes() {
        for (asked, most) in [(None, 512), (Some(100), 512), (Some(900), 900), (Some(4096), 1232)] {
            let mut query = query();
            query.edns = asked.map(|size| {
                let mut edns = Edns::new();
                edns.set_max_payload(size);
                edns
            });
            let reply = Reply::to(&query, ResponseCode::NoError);
            assert_eq!((reply.most, reply.message.edns.is_some()), (most, asked.is_some()));
        }
    }
}
