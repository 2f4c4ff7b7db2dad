//! Any datagram is a message or an error; a message survives the way out and in again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memif::message::Message;

fuzz_target!(|datagram: &[u8]| {
    match Message::decode(datagram) {
        Ok(message) => assert_eq!(Message::decode(&message.encode()), Ok(message)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
