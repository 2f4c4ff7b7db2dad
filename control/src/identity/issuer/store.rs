//! The authority in a folder: `authority.key` for its owner alone, `authority.der` beside it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{Authority, IssuerError};
use crate::identity::TrustDomain;

const KEY: &str = "authority.key";
const CERTIFICATE: &str = "authority.der";

fn at(path: &Path) -> impl FnOnce(io::Error) -> IssuerError + '_ {
    |reason| IssuerError::File { file: path.to_owned(), reason: reason.to_string() }
}

impl Authority {
    /// The authority kept in `folder`; a new one, kept there, if there is none.
    ///
    /// # Errors
    /// [`IssuerError::File`] if files can't be read or written, or are those of another trust domain.
    pub fn open(folder: &Path, domain: TrustDomain) -> Result<Self, IssuerError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at(folder))?;
        let (key_file, certificate_file) = (folder.join(KEY), folder.join(CERTIFICATE));
        if certificate_file.exists() {
            let key = fs::read(&key_file).map_err(at(&key_file))?;
            let certificate = fs::read(&certificate_file).map_err(at(&certificate_file))?;
            return Self::from_der(domain, &key, certificate.into())
                .map_err(|error| IssuerError::File { file: certificate_file, reason: error.to_string() });
        }
        let authority = Self::new(domain)?;
        // The key first: a certificate without its key would be taken for whole at the next start.
        write_new(&key_file, authority.key_der(), 0o600).map_err(at(&key_file))?;
        write_new(&certificate_file, authority.certificate(), 0o644).map_err(at(&certificate_file))?;
        Ok(authority)
    }

    /// Writes the trust domain's bundle as PEM, for others to federate with.
    ///
    /// # Errors
    /// [`IssuerError::File`].
    pub fn export(&self, file: &Path) -> Result<(), IssuerError> {
        write_new(file, pem(self.certificate()).as_bytes(), 0o644).map_err(at(file))
    }
}

/// Writes beside and renames, so that nobody reads half a file.
fn write_new(file: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let beside = PathBuf::from(format!("{}.new", file.display()));
    let _ = fs::remove_file(&beside);
    let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    fs::rename(&beside, file)
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// A foreign trust domain's authorities, PEM.
///
/// # Errors
/// [`IssuerError::File`] if the file can't be read or holds no certificate.
pub fn read_bundle(file: &Path) -> Result<Vec<CertificateDer<'static>>, IssuerError> {
    let bad = |reason: String| IssuerError::File { file: file.to_owned(), reason };
    let all: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(file).map_err(|error| bad(error.to_string()))?.collect();
    let all = all.map_err(|error| bad(error.to_string()))?;
    if all.is_empty() {
        return Err(bad("no certificate in it; a bundle is one or more in PEM".to_owned()));
    }
    match all.iter().find_map(|der| webpki::anchor_from_trusted_cert(der).err()) {
        Some(error) => Err(bad(format!("a certificate that can't be an authority: {error}"))),
        None => Ok(all),
    }
}
