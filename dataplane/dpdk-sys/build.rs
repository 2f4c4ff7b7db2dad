//! Finds DPDK, binds what `shim/shim.h` includes and the lists below name, and builds the shim.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=shim");
    #[cfg(feature = "bind")]
    if let Err(reason) = bind::run() {
        println!("cargo::error={reason}");
        std::process::exit(1);
    }
}

#[cfg(feature = "bind")]
mod bind {
    use std::path::PathBuf;
    use std::process::Command;

    /// The first release with what is used here; Debian 12's.
    const OLDEST: &str = "22.11";
    /// Of DPDK's many libraries, those that hold what is bound. A release that lacks one has it in another of them.
    const LIBRARIES: [&str; 5] = ["rte_eal", "rte_ethdev", "rte_mempool", "rte_mbuf", "rte_log"];

    const FUNCTIONS: [&str; 36] = [
        "rte_eal_init",
        "rte_eal_alarm_set",
        "rte_thread_register",
        "rte_thread_unregister",
        "rte_strerror",
        "rte_log_cur_msg_loglevel",
        "rte_dev_probe",
        "rte_dev_remove",
        "rte_eth_dev_get_port_by_name",
        "rte_eth_dev_info_get",
        "rte_eth_dev_configure",
        "rte_eth_dev_adjust_nb_rx_tx_desc",
        "rte_eth_rx_queue_setup",
        "rte_eth_tx_queue_setup",
        "rte_eth_dev_start",
        "rte_eth_dev_stop",
        "rte_eth_dev_close",
        "rte_eth_dev_socket_id",
        "rte_eth_dev_set_mtu",
        "rte_eth_dev_is_removed",
        "rte_eth_promiscuous_enable",
        "rte_eth_promiscuous_disable",
        "rte_eth_allmulticast_enable",
        "rte_eth_xstats_get",
        "rte_eth_xstats_get_names",
        "rte_eth_dev_callback_register",
        "rte_eth_dev_callback_unregister",
        "rte_eth_dev_rx_intr_enable",
        "rte_eth_dev_rx_intr_disable",
        "rte_eth_dev_rx_intr_ctl_q_get_fd",
        "rte_pktmbuf_pool_create",
        "rte_pktmbuf_free_bulk",
        "rte_mempool_free",
        "rte_mempool_avail_count",
        "rte_mempool_in_use_count",
        "vwire_.*",
    ];

    pub fn run() -> Result<(), String> {
        let flags = find()?;
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let mut shim = cc::Build::new();
        shim.file("shim/shim.c");
        shim.flags(&flags);
        shim.try_compile("vwire_dpdk_shim").map_err(|error| {
            format!("DPDK's headers do not compile ({error}); the Debian packages are build-essential and libdpdk-dev")
        })?;
        bindings(&flags)
    }

    /// The flags of DPDK's headers. Tells cargo what to link.
    fn find() -> Result<String, String> {
        let program = std::env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
        println!("cargo::rerun-if-env-changed=PKG_CONFIG");
        println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
        let ask = |arguments: &[&str]| {
            let asked = Command::new(&program).args(arguments).arg("libdpdk").output();
            let answer = asked.map_err(|error| {
                format!("{program} can't be run ({error}); the Debian package is pkg-config")
            })?;
            if answer.status.success() {
                return Ok(String::from_utf8_lossy(&answer.stdout).trim().to_owned());
            }
            let why = String::from_utf8_lossy(&answer.stderr).trim().replace('\n', "; ");
            Err(format!(
                "DPDK {OLDEST} or later is needed for the feature `dpdk`; the Debian package is libdpdk-dev ({why})"
            ))
        };
        ask(&["--print-errors", &format!("--atleast-version={OLDEST}")])?;
        for flag in ask(&["--libs"])?.split_whitespace() {
            if let Some(folder) = flag.strip_prefix("-L") {
                println!("cargo::rustc-link-search=native={folder}");
            }
            if let Some(library) = flag.strip_prefix("-l").filter(|library| LIBRARIES.contains(library)) {
                println!("cargo::rustc-link-lib=dylib={library}");
            }
        }
        ask(&["--cflags"])
    }

    fn bindings(flags: &[&str]) -> Result<(), String> {
        // bindgen panics where it finds no libclang.
        let made = std::panic::catch_unwind(|| {
            let mut builder = bindgen::builder()
                .header("shim/shim.h")
                .clang_args(flags)
                .allowlist_type("rte_eth_event_type|rte_eth_rx_mq_mode")
                .allowlist_var("VWIRE_.*|RTE_ETH_NAME_MAX_LEN")
                .opaque_type("rte_mbuf|rte_mempool|rte_device")
                .blocklist_function("main")
                .default_enum_style(bindgen::EnumVariation::Consts)
                .prepend_enum_name(false)
                .derive_default(true)
                .layout_tests(true)
                .merge_extern_blocks(true);
            for function in FUNCTIONS {
                builder = builder.allowlist_function(function);
            }
            builder.generate()
        });
        let bindings = match made {
            Ok(Ok(bindings)) => bindings,
            Ok(Err(error)) => return Err(format!("binding DPDK's headers: {error}")),
            Err(_) => {
                return Err(
                    "libclang is needed for the feature `dpdk`; the Debian package is libclang-dev".into()
                );
            }
        };
        let folder = std::env::var_os("OUT_DIR").ok_or("cargo gives no OUT_DIR")?;
        let written = bindings.write_to_file(PathBuf::from(folder).join("bindings.rs"));
        written.map_err(|error| format!("writing the bindings: {error}"))
    }
}
