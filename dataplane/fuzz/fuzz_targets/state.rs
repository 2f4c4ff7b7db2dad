//! Two states as messages of any bytes: refused, or valid for good; and the steps from one to the other never
//! name what is not there.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use vwire_dataplane::agent::plan::{Action, View, plan};
use vwire_dataplane::model::{PortName, State, state_from_proto, state_to_proto};
use vwire_proto::dataplane::v1 as pb;

fn state(bytes: &[u8]) -> Option<State> {
    let raw = pb::State::decode(bytes).ok()?;
    let state = state_from_proto(&raw).ok()?;
    let again = state_to_proto(&state);
    // What was accepted once is accepted again, and says the same. (Secrets are not given back.)
    assert_eq!(state_to_proto(&state_from_proto(&again).expect("accepted before")), again);
    Some(state)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let (from, to) = rest.split_at(rest.len().min(usize::from(*first)));
    let (Some(from), Some(to)) = (state(from), state(to)) else { return };
    let mut open: BTreeSet<PortName> = from.ports().keys().cloned().collect();
    for action in plan(&View::of(&from), &View::of(&to)) {
        match action {
            Action::Attach(port) => assert!(open.insert(port)),
            Action::Detach(port) => assert!(open.remove(&port)),
            Action::Publish(xconnects) => {
                assert!(xconnects.iter().all(|x| x.ends().iter().all(|end| open.contains(*end))));
            }
            Action::Note(_) | Action::Route(_) => unreachable!("neither is a step of a plan"),
        }
    }
    assert!(open.iter().eq(to.ports().keys()));
});
