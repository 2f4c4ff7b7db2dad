//! A composite endpoint's configuration: read or refused; what was read becomes settings that their own readers take.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vwire_control::config::{Labels, List, composite};
use vwire_control::endpoint::ipam::Groups;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(Some(composite)) = composite::read(text) else { return };
    for role in ["nse", "vl3", "vl3-ipam", "nsc"] {
        let Ok(settings) = composite.settings(role) else { continue };
        for (key, value) in settings {
            match key.as_str() {
                "labels" => drop(value.parse::<Labels>().expect("labels")),
                "service_names" | "routes" => drop(value.parse::<List<String>>().expect("a list")),
                "cidr_prefix" => drop(value.parse::<Groups>().expect("a prefix")),
                _ => {}
            }
        }
    }
});
