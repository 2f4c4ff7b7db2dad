//! Tokens and keys do not leave by the log, whoever wrote them there.

use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// How the JSON header of every JWT begins in base64.
const TOKEN: &[u8] = b"eyJ";
/// What each PEM of a private key says, with and without its kind.
const KEY: &[u8] = b"PRIVATE KEY";
const PEM_BEGIN: &[u8] = b"-----BEGIN";
const PEM_END: &[u8] = b"-----END";

/// Writers whose lines hold no tokens and no keys.
///
/// Nothing of ours writes them; this is for the day when an error's text quotes what it was given.
#[derive(Debug, Clone, Copy)]
pub struct Redacted<M>(pub M);

/// One such writer. Each `write` must be a whole line, as `tracing_subscriber` does it.
pub struct Line<W>(W);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Redacted<M> {
    type Writer = Line<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(self.0.make_writer())
    }
}

impl<W: Write> Write for Line<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match redact(line) {
            Some(clean) => self.0.write_all(&clean)?,
            None => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The line without its secrets, if it has any.
fn redact(line: &[u8]) -> Option<Vec<u8>> {
    if find(line, TOKEN).is_none() && find(line, KEY).is_none() {
        return None;
    }
    let mut clean = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = find(rest, TOKEN) {
        clean.extend_from_slice(&rest[..at]);
        clean.extend_from_slice(b"[token]");
        let length = rest[at..].iter().take_while(|byte| is_token(**byte)).count();
        rest = &rest[at + length..];
    }
    clean.extend_from_slice(rest);
    while let Some(at) = find(&clean, KEY) {
        let start = rfind(&clean[..at], PEM_BEGIN).unwrap_or(at);
        let end = match find(&clean[at..], PEM_END) {
            // To the dashes behind the last line, if they are there.
            Some(end) => find(&clean[at + end + PEM_END.len()..], b"-----")
                .map_or(clean.len(), |dashes| at + end + PEM_END.len() + dashes + 5),
            None => {
                clean.iter().rposition(|byte| *byte == b'\n').filter(|end| *end > at).unwrap_or(clean.len())
            }
        };
        clean.splice(start..end, *b"[key]");
    }
    Some(clean)
}

fn rfind(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).rposition(|window| window == needle)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(line: &str) -> String {
        redact(line.as_bytes()).map_or_else(|| line.to_owned(), |clean| String::from_utf8(clean).unwrap())
    }

    #[test]
    fn tokens_are_cut_out() {
        let token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln_bmF0-dXJl";
        assert_eq!(clean(&format!("a {token} b {token}\n")), "a [token] b [token]\n");
        assert_eq!(clean("nothing here\n"), "nothing here\n");
        assert_eq!(clean("eyJ"), "[token]");
    }

    #[test]
    fn keys_are_cut_out() {
        let pem = "-----BEGIN EC PRIVATE KEY-----\\nMHcCAQ\\n-----END EC PRIVATE KEY-----";
        assert_eq!(clean(&format!("a {pem} b {pem}\n")), "a [key] b [key]\n");
        assert_eq!(clean("a PRIVATE KEY abc\n"), "a [key]\n");
        assert_eq!(clean("-----BEGIN PRIVATE KEY-----abc"), "[key]");
        assert_eq!(clean("-----BEGIN PRIVATE KEY-----abc-----END"), "[key]");
        assert_eq!(clean("\nPRIVATE KEY"), "\n[key]");
    }

    proptest::proptest! {
        #[test]
        fn no_line_gets_one_through(parts in proptest::collection::vec(
            proptest::sample::select(vec!["eyJ", "PRIVATE KEY", "-----BEGIN", "-----END", "-----", "\n", "x", "."]), 0..12))
        {
            let line = clean(&parts.concat());
            proptest::prop_assert!(!line.contains("eyJ") && !line.contains("PRIVATE KEY"), "{}", line);
        }
    }
}
