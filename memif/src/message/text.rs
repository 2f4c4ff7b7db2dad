//! The fixed-size strings of control messages: NUL-terminated UTF-8 in a field of `N` bytes.

use core::fmt;
use core::str::FromStr;

/// A string that fits a message field of `N` bytes together with its terminating NUL.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Text<const N: usize>(String);

/// A name of a program or an interface: at most 31 bytes.
pub type Name = Text<32>;

/// The reason in a DISCONNECT: at most 95 bytes.
pub type Reason = Text<96>;

/// Why a string cannot go into a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Longer than the field.
    #[error("\"{text}\" has {len} bytes; memif's field holds {max} and a terminating NUL")]
    TooLong {
        /// What was offered.
        text: String,
        /// Its bytes.
        len: usize,
        /// The bytes that fit.
        max: usize,
    },
    /// The field ends at the first NUL, so none can be inside.
    #[error("\"{0}\" contains a NUL, which ends a string in a memif message")]
    Nul(String),
}

impl<const N: usize> Text<N> {
    /// The string.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As much of `text` as fits, cut at a character boundary and before any NUL. For explanations, where a
    /// shortened text beats none.
    pub fn cut(text: &str) -> Self {
        let text = text.split('\0').next().unwrap_or_default();
        Self(text[..text.floor_char_boundary(N - 1)].to_owned())
    }

    /// Writes the string into its field, which is zero before.
    pub(super) fn encode(&self, field: &mut [u8]) {
        field[..self.0.len()].copy_from_slice(self.0.as_bytes());
    }

    /// Reads a field that must be terminated and UTF-8. What follows the NUL is ignored.
    pub(super) fn decode(field: [u8; N]) -> Result<Self, BadText> {
        let end = field.iter().position(|&byte| byte == 0).ok_or(BadText::Unterminated)?;
        let text = core::str::from_utf8(&field[..end]).map_err(|_| BadText::NotUtf8)?;
        Ok(Self(text.to_owned()))
    }

    /// Reads a field whatever it holds: a peer that leaves is better quoted badly than not at all.
    pub(super) fn decode_lossy(field: [u8; N]) -> Self {
        let end = field.iter().position(|&byte| byte == 0).unwrap_or(N);
        Self::cut(&String::from_utf8_lossy(&field[..end]))
    }
}

/// What is wrong with a received string field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadText {
    /// No NUL in the whole field.
    #[error("is not terminated")]
    Unterminated,
    /// Bytes that are no UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
}

impl<const N: usize> FromStr for Text<N> {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        if text.len() >= N {
            return Err(TextError::TooLong { text: text.to_owned(), len: text.len(), max: N - 1 });
        }
        if text.contains('\0') {
            return Err(TextError::Nul(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A shared secret of at most 23 bytes. Never printed, compared in constant time.
#[derive(Clone)]
pub struct Secret(Text<24>);

impl Secret {
    /// True if no secret was sent.
    pub fn is_empty(&self) -> bool {
        self.0.0.is_empty()
    }

    /// Compares without telling by its duration where the difference is.
    pub fn matches(&self, other: &Secret) -> bool {
        let differing = self.padded().iter().zip(other.padded()).fold(0, |sum, (a, b)| sum | (a ^ b));
        core::hint::black_box(differing) == 0
    }

    fn padded(&self) -> [u8; 24] {
        let mut field = [0; 24];
        self.0.encode(&mut field);
        field
    }

    pub(super) fn encode(&self, field: &mut [u8]) {
        self.0.encode(field);
    }

    pub(super) fn decode(field: [u8; 24]) -> Result<Self, BadText> {
        Text::decode(field).map(Self)
    }

    /// What INIT carries where no secret is set.
    pub const fn none() -> Self {
        Self(Text(String::new()))
    }
}

impl FromStr for Secret {
    type Err = SecretError;

    fn from_str(secret: &str) -> Result<Self, SecretError> {
        // The error must not quote the secret, so Text's own error will not do.
        Text::from_str(secret).map(Self).map_err(|_| SecretError { len: secret.len() })
    }
}

/// A secret that does not fit INIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the memif secret has {len} bytes; at most 23 fit, and none may be NUL")]
pub struct SecretError {
    /// Bytes of the secret.
    pub len: usize,
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other)
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { "set" })
    }
}
