//! Compiles the .proto files without a `protoc` binary, and keeps their descriptors for gRPC reflection.

use std::path::{Path, PathBuf};

use prost::Message;

/// The packet engine's API.
const DATAPLANE: &[&str] = &["vwire/dataplane/v1/dataplane.proto"];
/// NSM v1.
const NSM: &[&str] = &[
    "nsm/networkservice.proto",
    "nsm/connection.proto",
    "nsm/connectioncontext.proto",
    "nsm/registry.proto",
    "nsm/ipam.proto",
];
/// The registry calls before v1. Their package has v1's name, so what is generated lies in a folder of its own.
const NSM_02: &[&str] = &["nsm02/registry.proto"];
/// The SPIFFE Workload API.
const WORKLOAD: &[&str] = &["spiffe/workload.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let plain = || tonic_prost_build::configure().build_transport(false);
    // Sorted maps are smaller than hashed ones, and print the same each time.
    let sorted = || plain().btree_map(".");
    compile(DATAPLANE, plain(), &out.join("dataplane_v1.bin"))?;
    compile(NSM, sorted(), &out.join("nsm.bin"))?;
    let old = out.join("nsm02");
    std::fs::create_dir_all(&old)?;
    compile(NSM_02, sorted().out_dir(&old), &old.join("nsm02.bin"))?;
    compile(WORKLOAD, sorted(), &out.join("workload.bin"))?;
    Ok(())
}

fn compile(
    files: &[&str],
    builder: tonic_prost_build::Builder,
    descriptors_at: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(files, ["proto"])?;
    std::fs::write(descriptors_at, descriptors.encode_to_vec())?;
    builder.compile_fds(descriptors)?;
    Ok(())
}
