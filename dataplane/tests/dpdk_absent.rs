//! A build without DPDK says so where such a port is asked for.
#![cfg(not(feature = "dpdk"))]

mod support;

use std::path::Path;

use support::{Rig, refused, run, set};
use tonic::Code;
use vwire_dataplane::agent::run::Dataplane;
use vwire_dataplane::config::Config;
use vwire_proto::dataplane::v1 as pb;

const SAID: &str = "this vwire-dataplane was built without DPDK: build it with --features dpdk (Debian: libdpdk-dev, libclang-dev), or take kind = \"af_xdp\" or \"kernel\"";

#[test]
fn the_api_refuses_the_port_and_names_the_feature() {
    run(async {
        let mut rig = Rig::new().await;
        let kind = pb::port::Kind::Dpdk(pb::DpdkPort { device: "net_null0".into(), ..Default::default() });
        let port = pb::Port { name: "nic0".into(), kind: Some(kind), ..Default::default() };
        let answer = rig.apply(vec![set(port)]).await;
        refused(answer, Code::FailedPrecondition, &format!("port nic0: {SAID}"));
        assert_eq!(rig.snapshot().await.state.unwrap(), pb::State::default());
    });
}

#[test]
fn the_configuration_is_refused_at_the_port_s_line() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[stats]\npath = \"{}/stats\"\n[dpdk]\nmemory = 64\n[[port]]\nname = \"nic0\"\nkind = \"dpdk\"\ndevice = \"net_null0\"\n",
            dir.path().display()
        );
        let file = Path::new("test.toml");
        let config = Config::parse(file, &text).unwrap();
        let said = Dataplane::start(file, &config).await.map(drop).unwrap_err().to_string();
        assert_eq!(said, format!("test.toml:5: port[0]: port nic0: {SAID}"));
    });
}
