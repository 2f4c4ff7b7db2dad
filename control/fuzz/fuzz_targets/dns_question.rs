//! Messages to a vL3 endpoint's name server: answered or not, an answer is a message that has the question's id, fits a datagram that
//! any path takes, and says nothing of names that are not there.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vwire_control::vl3::dns::{Directory, Naming, answer_datagram};
use vwire_proto::nsm::connection::Connection;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let directory = Directory::new(Naming {
        templates: vec!["{{ index .Labels \"podName\" }}.{{ .NetworkService }}.".parse().unwrap()],
        services: vec!["vl3".to_owned()],
        ttl: Duration::from_secs(60),
    });
    directory.set_prefixes(["172.16.0.0/16".parse().unwrap()]);
    for n in 0..200_u8 {
        // Some have the same name, so that there are answers that do not fit.
        let labels = [("podName".to_owned(), format!("p{}", n % 3))].into();
        let client = Connection { network_service: "vl3".to_owned(), labels, ..Default::default() };
        directory.records.set(&n.to_string(), &directory.names(&client), &[[172, 16, 0, n].into()]);
    }
    directory
});

fuzz_target!(|data: &[u8]| {
    let Some(answer) = answer_datagram(&DIRECTORY, data) else {
        assert!(data.len() < 12 || data[2] & 0x80 != 0, "only what is no question is not answered");
        return;
    };
    assert!(answer.len() >= 12 && answer.len() <= 1232, "{} bytes", answer.len());
    assert_eq!(answer[..2], data[..2], "the question's id");
    assert_ne!(answer[2] & 0x80, 0, "an answer");
    let answers = u16::from_be_bytes([answer[6], answer[7]]);
    assert!(answers == 0 || answer[3] & 0x0f == 0, "records with an error");
});
