//! The shim before mbufs as no driver should give them: `lying_driver.c`, built with the sanitizers of the C compiler and run.
#![cfg(feature = "bind")]

use std::path::Path;
use std::process::{Command, Output};

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let [said, failed] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "{command:?}: {}\n{said}{failed}", output.status);
    output
}

#[test]
fn what_a_driver_says_of_a_frame_is_checked() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lying_driver");
    let flags = run(Command::new("pkg-config").args(["--cflags", "--libs", "libdpdk"])).stdout;
    let flags = String::from_utf8(flags).unwrap();
    let mut build = Command::new("cc");
    build.args([
        "-g",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]);
    build.arg("-o").arg(&program);
    build.args(["tests/lying_driver.c", "shim/shim.c"].map(|file| here.join(file)));
    run(build.args(flags.split_whitespace()));
    run(&mut Command::new(program));
}
