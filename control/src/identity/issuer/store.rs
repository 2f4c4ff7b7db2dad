//! The authority in a folder: `authority.key` for its owner alone, `authority.der` beside it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;

use super::{Authority, IssuerError, bundle};
use crate::identity::TrustDomain;

const KEY: &str = "authority.key";
const CERTIFICATE: &str = "authority.der";

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> IssuerError + '_ {
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
        let text = bundle::to_pem(std::slice::from_ref(self.certificate()));
        write_new(file, text.as_bytes(), 0o644).map_err(at(file))
    }
}

/// Writes beside and renames, so that nobody reads half a file.
pub(super) fn write_new(file: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let beside = PathBuf::from(format!("{}.new", file.display()));
    let _ = fs::remove_file(&beside);
    let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    fs::rename(&beside, file)
}

/// A foreign trust domain's authorities: PEM, or a SPIFFE bundle.
///
/// # Errors
/// [`IssuerError::File`] if the file can't be read or holds no certificate.
pub fn read_bundle(file: &Path) -> Result<Vec<CertificateDer<'static>>, IssuerError> {
    let bytes = fs::read(file).map_err(at(file))?;
    bundle::parse(&bytes).map_err(|reason| IssuerError::File { file: file.to_owned(), reason })
}
