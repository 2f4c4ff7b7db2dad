//! Loading the XDP program and attaching it to an interface.

use std::io;
use std::os::fd::AsFd;
use std::sync::{LazyLock, Mutex, PoisonError};

use aya::maps::{HashMap, MapData, MapType, XskMap};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfError, EbpfLoader};

use super::error::{AfXdpError, refused};
use super::object::{self, MapDefinition, PROGRAM};
use super::program::{self, SOCKETS, STEERING, XDP_MD};
use super::steering::{Key, STEERING_MAX, Steerer, Steering};

/// The program on an interface. Dropped, the interface is the kernel's again: at once, also when the process is killed, since the
/// link lives no longer than its descriptor.
pub struct Attached {
    sockets: XskMap<MapData>,
    _link: FdLink,
    /// Set unless all frames are the port's.
    pub steerer: Option<Steerer>,
    /// True if the driver runs the program; else the kernel does, on frames that it has already copied.
    pub native: bool,
}

impl Attached {
    /// The frames of this queue go to this socket from now on.
    pub fn connect(&mut self, queue: u32, socket: &impl AsFd) -> Result<(), AfXdpError> {
        use std::os::fd::AsRawFd;
        self.sockets.set(queue, socket.as_fd().as_raw_fd(), 0).map_err(|error| AfXdpError::Kernel {
            ifname: format!("queue {queue}"),
            doing: "giving its frames to the socket".into(),
            error: error.to_string(),
        })
    }
}

/// Which program.
pub struct Wanted<'s> {
    /// The interface, for errors.
    pub ifname: &'s str,
    /// Its number.
    pub index: u32,
    /// One more than the highest queue that will have a socket.
    pub queues: u32,
    /// Which frames.
    pub steering: &'s Steering,
    /// Frames may be spread over several buffers.
    pub fragments: bool,
    /// Don't ask the driver.
    pub generic: bool,
}

impl Wanted<'_> {
    /// Loads the program and attaches it in the calling thread's namespace. No socket gets a frame before [`Attached::connect`].
    pub fn attach(&self) -> Result<Attached, AfXdpError> {
        // An older kernel would attach without a link, and what is attached so outlives this process if it is killed.
        if KernelVersion::current().is_ok_and(|current| current < KernelVersion::new(5, 9, 0)) {
            return Err(self.too_old("XDP links (bpf_link)"));
        }
        let mut loaded = self.load()?;
        let broken = |error: String| self.kernel("loading the XDP program", error);
        let sockets = loaded.take_map(SOCKETS).ok_or_else(|| broken("no map of sockets".into()))?;
        let sockets = XskMap::try_from(sockets).map_err(|error| broken(error.to_string()))?;
        let steerer = self.steerer(&mut loaded)?;
        let program = loaded.program_mut(PROGRAM).ok_or_else(|| broken("no program".into()))?;
        let program: &mut Xdp =
            program.try_into().map_err(|error: ProgramError| broken(error.to_string()))?;
        program.load().map_err(|error| self.not_loaded(&error))?;
        let (link, native) = self.link(program)?;
        Ok(Attached { sockets, _link: link, steerer, native })
    }

    fn load(&self) -> Result<Ebpf, AfXdpError> {
        let sockets =
            MapDefinition { name: SOCKETS, kind: MapType::XskMap, key: 4, value: 4, entries: self.queues };
        let key = size_of::<Key>() as u32;
        let steering =
            MapDefinition { name: STEERING, kind: MapType::Hash, key, value: 1, entries: STEERING_MAX };
        let object = match self.steering {
            Steering::All => object::write(&program::all(XDP_MD), &[sockets], self.fragments),
            Steering::Datagrams(_) => {
                object::write(&program::datagrams(XDP_MD), &[sockets, steering], self.fragments)
            }
        };
        let object = object.map_err(|error| self.kernel("writing the XDP program", error.to_string()))?;
        load(&object).map_err(|error| self.not_loaded(&error))
    }

    fn steerer(&self, loaded: &mut Ebpf) -> Result<Option<Steerer>, AfXdpError> {
        let Steering::Datagrams(destinations) = self.steering else { return Ok(None) };
        let broken = |error: String| self.kernel("steering datagrams", error);
        let map = loaded.take_map(STEERING).ok_or_else(|| broken("no map of destinations".into()))?;
        let steerer = Steerer::new(HashMap::try_from(map).map_err(|error| broken(error.to_string()))?);
        destinations.iter().try_for_each(|to| steerer.add(*to)).map_err(|error| broken(error.to_string()))?;
        Ok(Some(steerer))
    }

    /// In the driver, or, if that does not do it, in the kernel's generic hook.
    fn link(&self, program: &mut Xdp) -> Result<(FdLink, bool), AfXdpError> {
        let mut answers = Vec::new();
        for (mode, name) in [(XdpMode::Driver, "driver"), (XdpMode::Skb, "generic")] {
            if self.generic && mode == XdpMode::Driver {
                continue;
            }
            match program.attach_to_if_index(self.index, mode) {
                Ok(id) => {
                    let link = program.take_link(id).map_err(|error| self.not_attached(&error))?;
                    let link = FdLink::try_from(link).map_err(|_| self.too_old("XDP links (bpf_link)"))?;
                    return Ok((link, mode == XdpMode::Driver));
                }
                Err(error) => match errno(&error) {
                    Some(libc::EBUSY | libc::EEXIST) => {
                        return Err(AfXdpError::ProgramAttached { ifname: self.ifname.to_owned() });
                    }
                    Some(libc::EPERM | libc::EACCES) => return Err(self.not_attached(&error)),
                    _ => answers.push(format!("{name} mode: {}", chain(&error))),
                },
            }
        }
        Err(AfXdpError::Attach { ifname: self.ifname.to_owned(), error: answers.join("; ") })
    }

    fn not_attached(&self, error: &ProgramError) -> AfXdpError {
        match errno(error) {
            Some(number) => {
                refused(self.ifname, "attaching the XDP program")(io::Error::from_raw_os_error(number))
            }
            None => self.kernel("attaching the XDP program", chain(error)),
        }
    }

    fn not_loaded(&self, error: &(dyn std::error::Error + 'static)) -> AfXdpError {
        match errno(error) {
            Some(libc::EPERM | libc::EACCES) => {
                let doing = "loading the XDP program";
                refused(self.ifname, doing)(io::Error::from_raw_os_error(libc::EPERM))
            }
            Some(libc::ENOSYS) => self.too_old("BPF"),
            _ => self.kernel("loading the XDP program", chain(error)),
        }
    }

    fn too_old(&self, what: &'static str) -> AfXdpError {
        AfXdpError::TooOld { ifname: self.ifname.to_owned(), what }
    }

    fn kernel(&self, doing: &str, error: String) -> AfXdpError {
        AfXdpError::Kernel { ifname: self.ifname.to_owned(), doing: doing.to_owned(), error }
    }
}

/// One loader for all: making one reads the kernel's own types, some megabytes, which these programs have no use for.
fn load(object: &[u8]) -> Result<Ebpf, EbpfError> {
    static LOADER: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        Mutex::new(loader)
    });
    LOADER.lock().unwrap_or_else(PoisonError::into_inner).load(object)
}

/// The kernel's error number, wherever in the chain of causes it is.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(number);
        }
        cause = error.source();
    }
    None
}

/// An error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
