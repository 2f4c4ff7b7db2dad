//! Templates of names: read or refused; what is read is the same when it is read again, and makes no more than one label's worth of
//! trouble of whatever labels a client has.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vwire_control::vl3::dns::Template;
use vwire_proto::nsm::connection::Connection;

fuzz_target!(|data: (&str, &str, &str)| {
    let (text, service, label) = data;
    let Ok(template) = text.parse::<Template>() else { return };
    assert_eq!(template.to_string().parse::<Template>().as_ref(), Ok(&template));
    let labels = [("podName".to_owned(), label.to_owned())].into();
    let client = Connection { network_service: service.to_owned(), labels, ..Default::default() };
    if let Ok(filled) = template.fill(&client) {
        assert!(filled.len() <= 1024);
    }
});
