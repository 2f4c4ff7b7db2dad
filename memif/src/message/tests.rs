use super::*;
use proptest::prelude::*;

fn name(text: &str) -> Name {
    text.parse().expect("a short name")
}

fn every_kind() -> Vec<Message> {
    vec![
        Message::Ack,
        Message::Hello(Hello {
            name: name("server"),
            min_version: VERSION,
            max_version: VERSION,
            max_region: 255,
            max_s2c_ring: 3,
            max_c2s_ring: 7,
            max_log2_ring: 14,
        }),
        Message::Init(Init {
            version: VERSION,
            id: 0x0102_0304,
            mode: 1,
            secret: "hush".parse().expect("short"),
            name: name("client"),
        }),
        Message::AddRegion(AddRegion { index: 1, size: 0x1122_3344_5566_7788 }),
        Message::AddRing(AddRing {
            direction: Direction::ClientToServer,
            index: 2,
            region: 3,
            offset: 16512,
            log2_size: 10,
            private_header: 9,
        }),
        Message::Connect(name("client0")),
        Message::Connected(name("server0")),
        Message::disconnect("because"),
    ]
}

#[test]
fn every_message_survives_the_wire() {
    for message in every_kind() {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
}

/// The reference's worked example: INIT for version 2.0, id 0, ethernet, no secret.
#[test]
fn init_bytes_are_those_of_the_worked_example() {
    let init = Init { version: VERSION, id: 0, mode: 0, secret: Secret::none(), name: name("VPP") };
    let bytes = Message::Init(init).encode();
    assert_eq!(bytes[..16], [3, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[33..37], *b"VPP\0");
    assert!(bytes[37..].iter().all(|&byte| byte == 0));
}

#[test]
fn hello_fields_lie_where_the_protocol_puts_them() {
    let bytes = every_kind()[1].encode();
    assert_eq!(bytes[..2], [2, 0]);
    assert_eq!(bytes[2..9], *b"server\0");
    assert_eq!(bytes[34..45], [0, 2, 0, 2, 255, 0, 3, 0, 7, 0, 14]);
}

#[test]
fn region_and_ring_fields_lie_where_the_protocol_puts_them() {
    let region = every_kind()[3].encode();
    assert_eq!(region[..12], [4, 0, 1, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    let ring = every_kind()[4].encode();
    assert_eq!(ring[..15], [5, 0, 1, 0, 2, 0, 3, 0, 0x80, 0x40, 0, 0, 10, 9, 0]);
}

#[test]
fn disconnect_text_lies_behind_the_code() {
    let bytes = every_kind()[7].encode();
    assert_eq!(bytes[..14], *b"\x08\0\0\0\0\0because\0");
}

#[test]
fn sizes_other_than_128_are_refused() {
    for size in [0, 1, 127, 129, 4096] {
        assert_eq!(Message::decode(&vec![1; size]), Err(MessageError::Size(size)));
    }
}

#[test]
fn unknown_types_are_refused_by_number() {
    for unknown in [0u16, 9, 256, 0xffff] {
        let mut bytes = [0; MESSAGE_SIZE];
        bytes[..2].copy_from_slice(&unknown.to_ne_bytes());
        assert_eq!(Message::decode(&bytes), Err(MessageError::UnknownType(unknown)));
    }
}

#[test]
fn unterminated_and_non_utf8_strings_are_refused_by_field() {
    let mut bytes = every_kind()[2].encode();
    bytes[33..65].fill(b'x');
    let error = Message::decode(&bytes).expect_err("unterminated");
    assert_eq!(error.to_string(), "INIT name is not terminated");
    bytes[33..36].copy_from_slice(&[0xff, 0xfe, 0]);
    let error = Message::decode(&bytes).expect_err("not UTF-8");
    assert_eq!(error.to_string(), "INIT name is not UTF-8");
    bytes[9..33].fill(b's');
    let error = Message::decode(&bytes).expect_err("24 bytes of secret");
    assert_eq!(error.to_string(), "INIT secret is not terminated");
}

#[test]
fn a_leaving_peer_is_quoted_however_it_spells() {
    let mut bytes = Message::disconnect("").encode();
    bytes[6..102].fill(0xff);
    let Ok(Message::Disconnect(end)) = Message::decode(&bytes) else { panic!("a DISCONNECT") };
    assert!(end.reason.as_str().starts_with('\u{fffd}') && end.reason.as_str().len() <= 95);
}

#[test]
fn reasons_are_cut_at_a_character() {
    let Message::Disconnect(end) = Message::disconnect(&"ü".repeat(60)) else { panic!("a DISCONNECT") };
    assert_eq!(end.reason.as_str(), "ü".repeat(47));
}

#[test]
fn names_and_secrets_that_do_not_fit_say_so() {
    let error = "x".repeat(32).parse::<Name>().expect_err("too long");
    assert!(error.to_string().ends_with("has 32 bytes; memif's field holds 31 and a terminating NUL"));
    let error = "s3cret-s3cret-s3cret-24b".parse::<Secret>().expect_err("too long");
    assert_eq!(error.to_string(), "the memif secret has 24 bytes; at most 23 fit, and none may be NUL");
    assert!("23 bytes are just right".parse::<Secret>().is_ok());
}

#[test]
fn secrets_are_not_printed() {
    assert_eq!(format!("{:?}", "hush".parse::<Secret>()), "Ok(set)");
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_refused_and_what_decodes_survives(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn any_payload_of_a_known_type_decodes_or_is_refused(kind in 1u16..9, payload in any::<[u8; 32]>()) {
        let mut bytes = [0; MESSAGE_SIZE];
        bytes[2..34].copy_from_slice(&payload);
        bytes[..2].copy_from_slice(&kind.to_ne_bytes());
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }
}
