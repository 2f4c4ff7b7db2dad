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
/// The one that is announced, and does not sign yet.
const NEXT_KEY: &str = "next.key";
const NEXT_CERTIFICATE: &str = "next.der";
/// The one that signed before.
const OLD_CERTIFICATE: &str = "old.der";

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
        authority.keep(&key_file, &certificate_file)?;
        Ok(authority)
    }

    /// Writes the trust domain's bundle as PEM, for others to federate with.
    ///
    /// # Errors
    /// [`IssuerError::File`].
    pub fn export(&self, file: &Path) -> Result<(), IssuerError> {
        export(std::slice::from_ref(self.certificate()), file)
    }

    fn keep(&self, key: &Path, certificate: &Path) -> Result<(), IssuerError> {
        // The key first: a certificate without its key would be taken for whole at the next start.
        write_new(key, self.key_der(), 0o600).map_err(at(key))?;
        write_new(certificate, self.certificate(), 0o644).map_err(at(certificate))
    }
}

/// Writes a bundle as PEM.
///
/// # Errors
/// [`IssuerError::File`].
pub fn export(bundle: &[CertificateDer<'_>], file: &Path) -> Result<(), IssuerError> {
    write_new(file, bundle::to_pem(bundle).as_bytes(), 0o644).map_err(at(file))
}

/// A folder with the authorities of a rotation.
pub(super) struct State(pub PathBuf);

/// What is kept there.
pub(super) struct Kept {
    pub signs: Authority,
    pub next: Option<Authority>,
    pub old: Option<CertificateDer<'static>>,
}

impl State {
    /// What is there; a new authority, kept there, if there is none.
    pub fn open(&self, domain: &TrustDomain) -> Result<Kept, IssuerError> {
        let signs = match Authority::open(&self.0, domain.clone()) {
            Ok(signs) => signs,
            Err(error) => self.halfway(domain).ok_or(error)?,
        };
        let [key, certificate, old] = self.files([NEXT_KEY, NEXT_CERTIFICATE, OLD_CERTIFICATE]);
        let next = match (fs::read(&key), fs::read(&certificate)) {
            (Ok(key), Ok(der)) => Some(
                Authority::from_der(domain.clone(), &key, der.into())
                    .map_err(|error| IssuerError::File { file: certificate, reason: error.to_string() })?,
            ),
            _ => None,
        };
        let old = fs::read(old).ok().map(CertificateDer::from);
        Ok(Kept { signs, next, old })
    }

    /// The next authority, if its key is in the place of the one that signs and its certificate is not.
    fn halfway(&self, domain: &TrustDomain) -> Option<Authority> {
        let [key, next, certificate] = self.files([KEY, NEXT_CERTIFICATE, CERTIFICATE]);
        let (key, der) = (fs::read(key).ok()?, fs::read(&next).ok()?);
        let authority = Authority::from_der(domain.clone(), &key, der.into()).ok()?;
        fs::rename(next, certificate).ok()?;
        Some(authority)
    }

    pub fn announce(&self, next: &Authority) -> Result<(), IssuerError> {
        let [key, certificate] = self.files([NEXT_KEY, NEXT_CERTIFICATE]);
        next.keep(&key, &certificate)
    }

    /// The next one takes the place of the one that signs. Each step is whole, and a start after it goes on from there.
    pub fn activate(&self, signed: &Authority) -> Result<(), IssuerError> {
        let [old] = self.files([OLD_CERTIFICATE]);
        write_new(&old, signed.certificate(), 0o644).map_err(at(&old))?;
        for (from, to) in [(NEXT_KEY, KEY), (NEXT_CERTIFICATE, CERTIFICATE)] {
            let [from, to] = self.files([from, to]);
            fs::rename(&from, &to).map_err(at(&from))?;
        }
        Ok(())
    }

    pub fn retire(&self) -> Result<(), IssuerError> {
        let [old] = self.files([OLD_CERTIFICATE]);
        fs::remove_file(&old).map_err(at(&old))
    }

    fn files<const N: usize>(&self, names: [&str; N]) -> [PathBuf; N] {
        names.map(|name| self.0.join(name))
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
