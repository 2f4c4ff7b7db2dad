//! What is mapped, what is refused, and that nothing stays behind.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use memif::queue::{ClientMemory, ClientMemoryError, ClientShape, pair};
use memif::region::{HugePages, Limits, Region, RegionError};
use memif::ring::RingError;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

const SIZE: u64 = 16_384;

fn memfd(size: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("test", flags).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn map(fd: impl Into<OwnedFd>, size: u64) -> Result<std::sync::Arc<Region>, RegionError> {
    Region::map_peer(fd.into(), size, &Limits::default())
}

#[test]
fn our_regions_are_sealed_against_any_change_of_size() {
    let (region, fd) = Region::create(SIZE as usize, HugePages::Never).unwrap();
    assert!(region.is_sealed() && !region.is_poisoned() && !region.is_huge());
    assert_eq!(region.len() as u64, SIZE);
    for size in [0, SIZE - 1, SIZE + 1] {
        assert_eq!(rustix::fs::ftruncate(&fd, size), Err(rustix::io::Errno::PERM), "to {size}");
    }
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    assert_eq!(rustix::fs::fcntl_get_seals(&fd), Ok(seals));
    assert!(map(fd, SIZE).unwrap().is_sealed());
}

#[test]
fn a_peers_region_is_taken_sealed_or_not_and_in_part() {
    assert!(!map(memfd(SIZE, SealFlags::empty()), SIZE).unwrap().is_sealed());
    assert!(!map(memfd(SIZE, SealFlags::GROW), SIZE).unwrap().is_sealed());
    assert!(map(memfd(SIZE, SealFlags::SHRINK), SIZE).unwrap().is_sealed());
    assert_eq!(map(memfd(SIZE, SealFlags::empty()), 5000).unwrap().len(), 5000);
}

#[test]
fn huge_pages_are_used_where_there_are_any_and_missed_only_when_required() {
    let tried = Region::create(SIZE as usize, HugePages::Try).unwrap().0;
    match Region::create(SIZE as usize, HugePages::Require) {
        Ok((region, fd)) => {
            assert!(region.is_huge() && tried.is_huge());
            assert_eq!(region.len(), 2 << 20);
            assert!(map(fd, 2 << 20).unwrap().is_huge());
        }
        Err(RegionError::System { call, .. }) => {
            assert!(!tried.is_huge(), "{call} failed, so Try has fallen back");
            assert_eq!(tried.len() as u64, SIZE);
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn sizes_that_lie_are_refused() {
    let fd = || memfd(SIZE, SealFlags::empty());
    assert!(matches!(map(fd(), 0), Err(RegionError::Empty)));
    assert!(
        matches!(map(fd(), SIZE + 1), Err(RegionError::FileTooShort { announced, actual: SIZE }) if announced == SIZE + 1)
    );
    assert!(matches!(map(fd(), u64::MAX), Err(RegionError::TooLarge { size: u64::MAX, .. })));
    let limits = Limits { max_region_bytes: SIZE - 1, ..Limits::default() };
    let refused = Region::map_peer(fd(), SIZE, &limits);
    assert!(matches!(refused, Err(RegionError::TooLarge { size: SIZE, limit }) if limit == SIZE - 1));
}

#[test]
fn limits_count_regions_and_their_sum() {
    let limits = Limits { max_region_bytes: 100, max_regions: 3, max_total_bytes: 250 };
    assert!(limits.admit(0, 0, 100).is_ok());
    assert!(limits.admit(2, 150, 100).is_ok());
    assert!(matches!(
        limits.admit(2, 151, 100),
        Err(RegionError::TotalTooLarge { total: 151, size: 100, limit: 250 })
    ));
    assert!(matches!(limits.admit(3, 0, 1), Err(RegionError::TooMany { limit: 3 })));
    assert!(matches!(limits.admit(0, 0, 0), Err(RegionError::Empty)));
    assert!(matches!(limits.admit(0, 0, 101), Err(RegionError::TooLarge { size: 101, limit: 100 })));
    assert!(matches!(limits.admit(1, u64::MAX, 100), Err(RegionError::TotalTooLarge { .. })));
}

#[test]
fn descriptors_of_other_kinds_are_refused_by_name() {
    let found = |fd: OwnedFd| match map(fd, 4096) {
        Err(RegionError::NotAFile { found }) => found,
        other => panic!("{other:?}"),
    };
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    assert_eq!(found(reader), "a pipe");
    assert_eq!(found(writer), "a pipe");
    assert_eq!(found(std::os::unix::net::UnixDatagram::unbound().unwrap().into()), "a socket");
    assert_eq!(found(File::open("/tmp").unwrap().into()), "a directory");
    assert_eq!(found(File::open("/dev/zero").unwrap().into()), "a device");
    assert_eq!(
        found(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()),
        "no file at all"
    );
    let memory = memfd(SIZE, SealFlags::empty());
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let only_path = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert_eq!(found(only_path), "opened with O_PATH");
    let read_only = File::open(&path).unwrap();
    assert_eq!(found(read_only.into()), "opened for one direction only");
}

#[test]
fn a_file_that_is_not_in_memory_is_refused() {
    // The build directory is on a disk (or an overlay of one) on every machine we know; a tmpfs would make this test moot.
    let path = std::env::current_exe().unwrap().with_extension(format!("region-{}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.set_len(SIZE).unwrap();
    std::fs::remove_file(&path).unwrap();
    let magic = rustix::fs::fstatfs(&file).unwrap().f_type as u64;
    if magic == 0x0102_1994 {
        return;
    }
    assert!(matches!(map(file, SIZE), Err(RegionError::NotInMemory { magic: found }) if found == magic));
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let shape = |log2_size, buffer_size| ClientShape { log2_size, buffer_size, ..ClientShape::default() };
    let refused = |shape| ClientMemory::create(shape).unwrap_err();
    assert!(matches!(refused(shape(0, 2048)), ClientMemoryError::Ring(RingError::BadSize { log2: 0 })));
    assert!(matches!(refused(shape(16, 2048)), ClientMemoryError::Ring(RingError::BadSize { log2: 16 })));
    for buffer in [0, 63, 100, 65_600, u32::MAX] {
        assert!(matches!(refused(shape(10, buffer)), ClientMemoryError::BadBuffer { .. }), "{buffer}");
    }
    assert!(matches!(refused(shape(15, 65_536)), ClientMemoryError::TooLarge { rings: 2, log2: 15, .. }));
}

/// File descriptors and mappings of regions in this process.
fn held() -> (usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (fds, maps.lines().filter(|line| line.contains("memif-region")).count())
}

/// Run alone (in a process of its own), so that other tests' descriptors do not count.
#[test]
fn nothing_stays_behind_after_many_connections() {
    if std::env::var_os("MEMIF_TEST_ALONE").is_none() {
        let me = std::env::current_exe().unwrap();
        let alone = ["--exact", "nothing_stays_behind_after_many_connections", "--test-threads=1"];
        let status =
            std::process::Command::new(me).args(alone).env("MEMIF_TEST_ALONE", "1").status().unwrap();
        assert!(status.success());
        return;
    }
    let shape = ClientShape { log2_size: 4, ..ClientShape::default() };
    drop(pair(shape).unwrap());
    let before = held();
    for _ in 0..5_000 {
        let pair = pair(shape).unwrap();
        assert_eq!(pair.client.rx.len() + pair.server.rx.len(), 2);
        let refused = map(pair.server.rx[0].event_fd().as_fd().try_clone_to_owned().unwrap(), 4096);
        assert!(refused.is_err());
    }
    assert_eq!(held(), before);
}
