use super::*;

#[test]
fn names_are_what_their_keepers_accept() {
    for good in ["a", "uplink-1.v_4", &"n".repeat(63)] {
        assert_eq!(good.parse::<PortName>().unwrap().as_str(), good);
    }
    for bad in ["", "a b", "ä", "a/b", "a\0", &"n".repeat(64)] {
        assert!(bad.parse::<PortName>().unwrap_err().0.contains("1 to 63 bytes"), "{bad:?}");
    }
    for bad in ["", ".", "..", "all", "default", "a/b", "a b", "nsm%d", "a:1", "sixteen-bytes-ab", "ä"] {
        assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
    }
    assert_eq!("fifteen-bytes-a".parse::<IfName>().unwrap().as_str(), "fifteen-bytes-a");
}

#[test]
fn a_socket_is_a_path_an_abstract_name_or_a_descriptor() {
    let inode = Inode { dev: 4, ino: 4_026_532_711 };
    let cases = [
        ("/run/vwire/a.sock", ControlSocket::Path("/run/vwire/a.sock".into())),
        ("@vwire", ControlSocket::Abstract("vwire".into())),
        ("fd:3", ControlSocket::Inherited(3)),
        ("inode://4/4026532711", ControlSocket::Sent(inode)),
    ];
    for (text, socket) in cases {
        assert_eq!(text.parse(), Ok(socket.clone()));
        assert_eq!(socket.to_string(), text);
    }
    let long = format!("/{}", "p".repeat(107));
    for bad in
        ["", "@", "/", "run/a", "/run/../etc/a", "fd:2", "fd:", "fd:-1", "inode://4", "inode://+4/4", &long]
    {
        assert!(bad.parse::<ControlSocket>().is_err(), "{bad:?}");
    }
}

#[test]
fn numbers_name_their_limits() {
    assert_eq!(Mtu::try_from(65_522).unwrap_err().0, "mtu can be 68 to 65521 bytes, not 65522");
    assert_eq!(
        RingSize::try_from(1000).unwrap_err().0,
        "ring_size can be a power of two from 2 to 32768 slots, not 1000"
    );
    assert_eq!(Queues::try_from(-1).unwrap_err().0, "queues can be 1 to 16, not -1");
    assert_eq!(Vni::try_from(1 << 24).unwrap_err().0, "a vni can be 0 to 16777215 (24 bits), not 16777216");
    assert_eq!((Mtu::default().get(), UdpPort::default().get()), (1500, 4789));
    assert!(BufferSize::try_from(2049).is_err() && BufferSize::try_from(9216).is_ok());
}

#[test]
fn prefixes_hold_addresses_that_a_host_can_have() {
    for good in ["10.60.1.2/30", "2001:db8::2/64", "10.0.0.1/0", "fe80::1/128"] {
        assert_eq!(good.parse::<Prefix>().unwrap().to_string(), good);
    }
    for bad in
        ["10.60.1.2", "10.60.1.2/33", "10.60.1.2/+3", "0.0.0.0/0", "224.0.0.1/4", "::/0", "x/1", "1.1.1.1/-1"]
    {
        assert!(bad.parse::<Prefix>().is_err(), "{bad}");
    }
}

#[test]
fn a_secret_is_never_printed() {
    let secret: Secret = "open sesame".parse().unwrap();
    assert_eq!(format!("{secret:?}"), "hidden");
    assert!(!"x".repeat(24).parse::<Secret>().unwrap_err().0.contains('x'));
}
