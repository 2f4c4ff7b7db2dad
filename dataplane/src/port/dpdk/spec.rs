//! What may be asked of DPDK: the process's settings, and a port's.

use serde::Deserialize;

use crate::model::Invalid;

/// `[dpdk]`: how DPDK's environment abstraction layer (EAL) is started, once in a process, with the first port of this kind.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawSettings")]
pub struct Settings {
    /// Whether its memory is of huge pages, which drivers of real NICs need.
    pub huge_pages: bool,
    /// MiB of memory: with huge pages what is taken at once, without them all there will be.
    pub memory: Option<u32>,
    /// Packet buffers of the pool that ports share.
    pub buffers: u32,
    /// Bytes of a frame that fit into one of them.
    pub buffer_size: u16,
    /// Further arguments of the EAL, as DPDK's guide "EAL parameters" lists them.
    pub eal_args: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSettings {
    huge_pages: bool,
    memory: Option<u32>,
    buffers: u32,
    buffer_size: u16,
    eal_args: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { huge_pages: true, memory: None, buffers: 16_384, buffer_size: 2048, eal_args: Vec::new() }
    }
}

impl Default for RawSettings {
    fn default() -> Self {
        let Settings { huge_pages, memory, buffers, buffer_size, eal_args } = Settings::default();
        Self { huge_pages, memory, buffers, buffer_size, eal_args }
    }
}

impl TryFrom<RawSettings> for Settings {
    type Error = Invalid;
    fn try_from(raw: RawSettings) -> Result<Self, Invalid> {
        let RawSettings { huge_pages, memory, buffers, buffer_size, eal_args } = raw;
        Self { huge_pages, memory, buffers, buffer_size, eal_args }.checked()
    }
}

/// MiB of memory without huge pages, if nothing else is said: room for the usual pool and some ports' queues.
const PLAIN_MEMORY: u32 = 256;
/// Most arguments, and most bytes of one.
const MAX_ARGS: usize = 64;
const MAX_ARG: usize = 1024;

/// Arguments that are ours to give, by what an operator does instead.
const RESERVED: [(&[&str], &str); 5] = [
    (
        &["-c", "-l", "-s", "-S", "--lcores", "--main-lcore", "--service-corelist"],
        "the workers are vwire's own threads; see [workers] cores",
    ),
    (&["--no-huge"], "write huge_pages = false"),
    (&["-m"], "write memory = <MiB>"),
    (
        &["--proc-type", "--in-memory", "--no-shconf", "--file-prefix"],
        "nothing is shared with other DPDK processes",
    ),
    (&["-h", "--help", "-v", "--version"], "it ends the process"),
];

impl Settings {
    /// The settings, if they can be.
    ///
    /// # Errors
    /// Which can't.
    pub fn checked(self) -> Result<Self, Invalid> {
        let within = |name: &str, value: u32, low: u32, high: u32| match value {
            _ if (low..=high).contains(&value) => Ok(()),
            _ => Err(Invalid(format!("dpdk.{name} is {low} to {high}, not {value}"))),
        };
        within("memory", self.memory.unwrap_or(PLAIN_MEMORY), 32, 1 << 20)?;
        within("buffers", self.buffers, 512, 1 << 24)?;
        within("buffer_size", self.buffer_size.into(), 256, 16_384)?;
        if self.eal_args.len() > MAX_ARGS {
            return Err(Invalid(format!(
                "dpdk.eal_args has at most {MAX_ARGS}, not {}",
                self.eal_args.len()
            )));
        }
        self.eal_args.iter().try_for_each(|argument| check_argument(argument))?;
        Ok(self)
    }

    /// The command line of the EAL. `cores` are those that this process may use.
    pub fn arguments(&self, cores: &[usize]) -> Vec<String> {
        let cores: Vec<String> = cores.iter().map(ToString::to_string).collect();
        // One "lcore", that may run on any of our cores: the EAL starts no thread of its own for packets and pins none.
        let mut arguments = vec!["vwire-dataplane".into(), format!("--lcores=0@({})", cores.join(","))];
        arguments.push("--no-telemetry".into());
        // Nothing is left in /var/run or on hugetlbfs when the process ends, however it ends. (EAL: --in-memory needs huge pages.)
        arguments.push(if self.huge_pages { "--in-memory" } else { "--no-shconf" }.into());
        match (self.huge_pages, self.memory) {
            (false, memory) => {
                arguments.extend([
                    "--no-huge".into(),
                    "-m".into(),
                    memory.unwrap_or(PLAIN_MEMORY).to_string(),
                ]);
            }
            (true, Some(memory)) => arguments.extend(["-m".into(), memory.to_string()]),
            (true, None) => {}
        }
        // A NIC is touched when a port names it, not because it is there: allow none at the start.
        let lists = ["-a", "--allow", "-b", "--block", "--no-pci"];
        let says = |argument: &String| lists.iter().any(|list| is(argument, list));
        if !self.eal_args.iter().any(says) {
            arguments.push("--allow=0000:00:00.0".into());
        }
        arguments.extend(self.eal_args.iter().cloned());
        arguments
    }
}

/// Whether an argument is this option, alone or with its value behind it.
fn is(argument: &str, option: &str) -> bool {
    match argument.strip_prefix(option) {
        Some(rest) if option.starts_with("--") => rest.is_empty() || rest.starts_with('='),
        Some(_) => !argument.starts_with("--"),
        None => false,
    }
}

fn check_argument(argument: &str) -> Result<(), Invalid> {
    if argument.is_empty() || argument.len() > MAX_ARG || argument.contains('\0') {
        return Err(Invalid(format!("dpdk.eal_args: an argument has 1 to {MAX_ARG} bytes and no NUL")));
    }
    let reserved = RESERVED.iter().find(|(options, _)| options.iter().any(|option| is(argument, option)));
    match reserved {
        Some((_, instead)) => {
            Err(Invalid(format!("dpdk.eal_args: {argument} can't be given here: {instead}")))
        }
        None => Ok(()),
    }
}

/// A port on a device of DPDK's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// The device and its arguments, as `rte_dev_probe` takes them: `0000:03:00.0` or `net_af_packet0,iface=eth1`.
    pub device: String,
    /// Receive queues, over which the device spreads flows.
    pub queues: u16,
    /// Workers that share the port, each with receive queues of its own, as evenly as can be, and a transmit queue; at most `queues`.
    pub workers: u16,
    /// Descriptors of each receive queue.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue.
    pub tx_descriptors: u16,
    /// Bytes of a frame behind its Ethernet header.
    pub mtu: u16,
    /// Whether frames for other hardware addresses are received, too.
    pub promiscuous: bool,
    /// Buffers of a pool of its own; `None` shares the process's.
    pub buffers: Option<u32>,
}

impl DeviceSpec {
    /// A port on `device`, with what is usual.
    pub fn new(device: impl Into<String>) -> Self {
        Self {
            device: device.into(),
            queues: 1,
            workers: 1,
            rx_descriptors: 512,
            tx_descriptors: 512,
            mtu: 1500,
            promiscuous: true,
            buffers: None,
        }
    }

    /// The device's name, without its arguments.
    pub fn name(&self) -> &str {
        self.device.split(',').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(settings: &Settings) -> String {
        settings.arguments(&[0, 3])[1..].join(" ")
    }

    #[test]
    fn the_eal_gets_one_lcore_on_all_cores_and_touches_no_nic_at_its_start() {
        let usual = Settings::default();
        assert_eq!(arguments(&usual), "--lcores=0@(0,3) --no-telemetry --in-memory --allow=0000:00:00.0",);
        let plain = Settings { huge_pages: false, ..usual.clone() };
        assert!(arguments(&plain).contains("--no-shconf --no-huge -m 256"), "{plain:?}");
        let named = Settings { memory: Some(64), eal_args: vec!["-a0000:03:00.0".into()], ..usual };
        assert!(arguments(&named).ends_with("--in-memory -m 64 -a0000:03:00.0"), "{}", arguments(&named));
    }

    #[test]
    fn an_argument_that_is_ours_to_give_is_refused_with_what_to_write_instead() {
        for (argument, instead) in [
            ("-l0-3", "[workers] cores"),
            ("--lcores=1", "[workers] cores"),
            ("--no-huge", "huge_pages = false"),
            ("-m", "memory = <MiB>"),
            ("--proc-type=secondary", "other DPDK processes"),
            ("--help", "ends the process"),
            ("", "1 to 1024 bytes"),
        ] {
            let said =
                Settings { eal_args: vec![argument.into()], ..Settings::default() }.checked().unwrap_err();
            assert!(said.to_string().contains(instead), "{argument}: {said}");
        }
        for good in ["--log-level=pmd:debug", "--vdev=net_null0", "-n4", "--legacy-mem"] {
            assert!(
                Settings { eal_args: vec![good.into()], ..Settings::default() }.checked().is_ok(),
                "{good}"
            );
        }
    }

    #[test]
    fn numbers_have_limits() {
        for bad in [
            Settings { memory: Some(1), ..Settings::default() },
            Settings { buffers: 10, ..Settings::default() },
            Settings { buffer_size: 65_535, ..Settings::default() },
            Settings { eal_args: vec!["-n4".into(); 65], ..Settings::default() },
        ] {
            assert!(bad.clone().checked().is_err(), "{bad:?}");
        }
    }
}
