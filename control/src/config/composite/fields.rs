//! The fields of a file's objects, with what is wrong with them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The fields of one object, taken one by one; what nobody takes is an error.
pub(super) struct Fields {
    /// Where it is: `endpoints[0].ipam.`.
    pub at: String,
    fields: Map<String, Value>,
}

impl Fields {
    pub fn new(at: impl Into<String>, fields: Map<String, Value>) -> Result<Self, String> {
        let at = at.into();
        let mut lower = Map::new();
        for (key, value) in fields {
            if lower.insert(key.to_ascii_lowercase(), value).is_some() {
                return Err(format!("{at}{}: there twice", key.to_ascii_lowercase()));
            }
        }
        Ok(Self { at, fields: lower })
    }

    /// A field's value; what is null is not there.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.fields.remove(key).filter(|value| !value.is_null())
    }

    /// Text that can stand in a list or a URL.
    pub fn word(&mut self, key: &str) -> Result<Option<String>, String> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let text = text(&value).ok_or_else(|| format!("{}{key}: not a text", self.at))?;
        let plain = |c: char| !c.is_whitespace() && !c.is_control() && !",[]?&=#".contains(c);
        if !text.chars().all(plain) {
            return Err(format!("{}{key}: {text:?}: has a blank or one of , [ ] ? & = #", self.at));
        }
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    pub fn value<T: std::str::FromStr>(&mut self, key: &str, what: &str) -> Result<Option<T>, String> {
        let at = format!("{}{key}", self.at);
        let Some(word) = self.word(key)? else { return Ok(None) };
        word.parse().map(Some).map_err(|_| format!("{at}: {word:?} is not {what}"))
    }

    pub fn values<T: std::str::FromStr>(&mut self, key: &str, what: &str) -> Result<Vec<T>, String> {
        let at = format!("{}{key}", self.at);
        let items = match self.take(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(format!("{at}: not a list")),
        };
        let item = |item: &Value| {
            let read = text(item).and_then(|text| text.parse().ok());
            read.ok_or_else(|| format!("{at}: {item} is not {what}"))
        };
        items.iter().map(item).collect()
    }

    pub fn object(&mut self, key: &str) -> Result<Option<Self>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(fields)) => Self::new(format!("{}{key}.", self.at), fields).map(Some),
            Some(_) => Err(format!("{}{key}: not a list of keys with values", self.at)),
        }
    }

    pub fn list(&mut self, key: &str) -> Result<Vec<Self>, String> {
        let items = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(format!("{}{key}: not a list", self.at)),
        };
        let item = |(number, item)| match item {
            Value::Object(fields) => Self::new(format!("{}{key}[{number}].", self.at), fields),
            _ => Err(format!("{}{key}[{number}]: not a list of keys with values", self.at)),
        };
        items.into_iter().enumerate().map(item).collect()
    }

    pub fn labels(&mut self) -> Result<BTreeMap<String, String>, String> {
        let mut labels = BTreeMap::new();
        let fields = match self.take("labels") {
            None => return Ok(labels),
            Some(Value::Object(fields)) => fields,
            Some(_) => return Err(format!("{}labels: not a list of keys with values", self.at)),
        };
        for (key, value) in fields {
            let at = format!("{}labels.{key}", self.at);
            let value = text(&value).ok_or_else(|| format!("{at}: not a text"))?;
            let fits = |text: &str| !text.contains([':', '=', ',', '&', '?', '#']) && text.trim() == text;
            if key.is_empty() || !fits(&key) || !fits(&value) {
                return Err(format!(
                    "{at}: {value:?}: a label has no blanks around it, and none of : = , & ? #"
                ));
            }
            labels.insert(key, value);
        }
        Ok(labels)
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<(), String> {
        let Some(key) = self.fields.keys().next() else { return Ok(()) };
        let told = if key == "action" {
            "nothing of it can be done here, and it must not be lost"
        } else {
            "nobody knows it"
        };
        Err(format!("{}{key}: {told}", self.at))
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}
