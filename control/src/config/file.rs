//! A file of settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::composite;

/// Longest file that is read. Alias bombs and mistaken paths end here.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct BadFile {
    /// The file.
    pub path: PathBuf,
    /// With the key, where it is about one.
    pub reason: String,
}

/// Reads `path` into one text for each key, as an environment variable of this role would hold it.
///
/// # Errors
/// [`BadFile`].
pub fn read(path: &Path, role: &str) -> Result<BTreeMap<String, String>, BadFile> {
    let bad = |reason: String| BadFile { path: path.to_owned(), reason };
    let meta = std::fs::metadata(path).map_err(|error| bad(error.to_string()))?;
    if !meta.is_file() {
        return Err(bad("not a file".to_owned()));
    }
    if meta.len() > MAX_BYTES {
        return Err(bad(format!("{} bytes; a file of settings has at most {MAX_BYTES}", meta.len())));
    }
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let text = text.trim_start_matches('\u{feff}');
    let extension = path.extension().and_then(|extension| extension.to_str());
    if matches!(extension, Some("yaml" | "yml"))
        && let Some(composite) = composite::read(text).map_err(&bad)?
    {
        return composite.settings(role).map_err(bad);
    }
    let document: Value = match extension {
        Some("toml") => toml::from_str(text).map_err(|error| bad(error.to_string()))?,
        Some("yaml" | "yml") => serde_yaml_ng::from_str(text).map_err(|error| bad(error.to_string()))?,
        _ => return Err(bad("is it TOML or YAML? Name it *.toml, *.yaml or *.yml".to_owned())),
    };
    let keys = match document {
        Value::Object(keys) => keys,
        Value::Null => return Ok(BTreeMap::new()),
        _ => return Err(bad("not a list of keys with values".to_owned())),
    };
    let flat = |(key, value)| {
        let text = text_of(&value, 0).map_err(|reason| bad(format!("{key}: {reason}")))?;
        Ok((key, text))
    };
    keys.into_iter().map(flat).collect()
}

/// A value as it would stand in a variable: lists with commas, lists of lists with brackets, maps as labels.
fn text_of(value: &Value, depth: usize) -> Result<String, String> {
    match value {
        Value::Null => Ok(String::new()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Number(value) => Ok(value.to_string()),
        Value::String(text) => Ok(text.clone()),
        Value::Array(items) if depth < 2 => {
            let items: Result<Vec<String>, String> =
                items.iter().map(|item| text_of(item, depth + 1)).collect();
            let text = items?.join(",");
            Ok(if depth == 0 { text } else { format!("[{text}]") })
        }
        Value::Object(pairs) if depth == 0 => {
            let pair = |(key, value)| Ok(format!("{key}:{}", text_of(value, 2)?));
            Ok(pairs.iter().map(pair).collect::<Result<Vec<_>, String>>()?.join(","))
        }
        _ => Err("nested too deeply".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> Result<BTreeMap<String, String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path, "role").map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), ""))
    }

    #[test]
    fn yaml_and_toml_say_the_same() {
        let yaml = "listen_on: [a, b]\nlabels: {app: web, tier: 1}\ncidr_prefix: [[x, y], z]\ninsecure: true\nn: 5s\n";
        let toml = "listen_on = [\"a\", \"b\"]\nlabels = {app = \"web\", tier = 1}\n\
                    cidr_prefix = [[\"x\", \"y\"], \"z\"]\ninsecure = true\nn = \"5s\"\n";
        let expected = [
            ("cidr_prefix", "[x,y],z"),
            ("insecure", "true"),
            ("labels", "app:web,tier:1"),
            ("listen_on", "a,b"),
            ("n", "5s"),
        ];
        let expected: BTreeMap<_, _> = expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(file("a.yaml", yaml), Ok(expected.clone()));
        assert_eq!(file("a.toml", toml), Ok(expected.clone()));
        assert_eq!(file("a.yml", &format!("\u{feff}{}", yaml.replace('\n', "\r\n"))), Ok(expected));
    }

    #[test]
    fn what_is_no_list_of_settings_is_refused_with_the_file() {
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b]\n";
        let cases = [
            ("a.txt", "x: 1", "TOML or YAML"),
            ("a.yaml", "- 1", "keys with values"),
            ("a.yaml", "a: [", "line"),
            ("a.toml", "a", "line 1"),
            ("a.yaml", "a: {b: {c: 1}}", "a: nested"),
            ("a.yaml", bomb, "c: nested"),
        ];
        for (name, text, reason) in cases {
            let error = file(name, text).unwrap_err();
            assert!(error.contains(name) && error.contains(reason), "{name} {text}: {error}");
        }
        assert!(read(Path::new("/"), "role").unwrap_err().to_string().contains("not a file"));
        assert!(
            read(Path::new("/nonexistent.yaml"), "role").unwrap_err().to_string().contains("No such file")
        );
    }

    #[test]
    fn a_huge_file_is_not_read() {
        let error = file("a.yaml", &"#".repeat(10 << 20)).unwrap_err();
        assert!(error.contains("at most"), "{error}");
    }

    #[test]
    fn an_empty_file_sets_nothing() {
        assert_eq!(file("a.yaml", ""), Ok(BTreeMap::new()));
        assert_eq!(file("a.toml", "# nothing\n"), Ok(BTreeMap::new()));
    }
}
