//! Every settings file that is shipped is one that its role starts with.

use std::ffi::OsString;
use std::path::Path;

use clap::{Parser, Subcommand};
use vwire_control::config;
use vwire_control::roles::{ca, forwarder, nsc, nse, nsmgr, nsmrs, registry, vl3, vl3_ipam};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    Ca(Box<ca::Settings>),
    Forwarder(Box<forwarder::Settings>),
    Nsc(Box<nsc::Settings>),
    Nse(Box<nse::Settings>),
    Nsmgr(Box<nsmgr::Settings>),
    Nsmrs(Box<nsmrs::Settings>),
    Registry(Box<registry::Settings>),
    Vl3(Box<vl3::Settings>),
    Vl3Ipam(Box<vl3_ipam::Settings>),
}

fn load(role: &str, file: &Path) -> Role {
    let args: Vec<OsString> = vec!["vwire".into(), role.into(), "--config".into(), file.into()];
    match config::load::<Cli>(&args) {
        Ok((cli, _)) => cli.role,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_settings_file_is_one_that_its_role_starts_with() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/host");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().path();
        let role = file.file_stem().unwrap().to_str().unwrap().to_owned();
        match load(&role, &file) {
            Role::Ca(settings) => {
                assert_eq!(
                    (settings.workloads.len(), settings.trust_domain.to_string().as_str()),
                    (7, "host.vwire")
                );
                assert!(settings.federation.is_some());
            }
            Role::Registry(settings) => assert!(settings.state.is_some()),
            Role::Nsmgr(settings) => assert_eq!(settings.managing.listen_on.len(), 2),
            Role::Nsmrs(settings) => {
                assert_eq!(settings.api_address.len(), 1);
                assert_eq!(settings.expiration_timeout.as_secs(), 300);
                assert!(settings.state.is_some());
            }
            Role::Forwarder(settings) => assert!(settings.vwires.dataplane.is_some()),
            Role::Vl3(settings) => {
                assert_eq!((settings.prefix.len(), settings.prefix_server_url.len()), (0, 1))
            }
            Role::Vl3Ipam(settings) => {
                assert_eq!(settings.prefix.to_string(), "172.16.0.0/16");
                assert!(settings.state.is_some());
            }
            Role::Nsc(_) | Role::Nse(_) => panic!("{} has no place here", file.display()),
        }
        seen.push(role);
    }
    seen.sort();
    assert_eq!(seen, ["ca", "forwarder", "nsmgr", "nsmrs", "registry", "vl3", "vl3-ipam"]);
}

#[test]
fn every_role_starts_from_nothing_but_its_defaults() {
    for role in ["ca", "forwarder", "nsc", "nse", "nsmgr", "nsmrs", "registry", "vl3", "vl3-ipam"] {
        let args: Vec<OsString> = vec!["vwire".into(), role.into()];
        assert!(config::load::<Cli>(&args).is_ok(), "{role}");
    }
}

#[test]
fn the_unit_runs_a_role_with_its_file() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/systemd/vwire@.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    assert!(unit.contains("\nExecStart=/usr/local/bin/vwire %i --config /etc/vwire/%i.yaml\n"));
}
