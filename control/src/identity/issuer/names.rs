//! Which workload a caller is.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A caller of the Workload API, as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its program, if it is in a process namespace that we see.
    pub program: Option<PathBuf>,
}

impl Caller {
    /// Looks up the program of a process. The pid is of the moment of the connection: this is good enough for one host's labs, and no
    /// defence against processes that race with pids.
    pub fn of(pid: Option<i32>, uid: u32) -> Self {
        let link = |pid: i32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        Self { uid, program: pid.filter(|&pid| pid > 0).and_then(link) }
    }
}

/// What is known of a caller must be so, for it to have this name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    uid: Option<u32>,
    program: Option<PathBuf>,
    name: Name,
}

/// A path of SPIFFE IDs, in which `{uid}` and `{program}` stand for the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Default for Name {
    fn default() -> Self {
        Self("/uid/{uid}/{program}".to_owned())
    }
}

impl Name {
    /// The path for this caller: of a program, the file's name, with what SPIFFE IDs can't hold replaced by `_`.
    pub fn of(&self, caller: &Caller) -> String {
        let program = caller
            .program
            .as_deref()
            .and_then(Path::file_name)
            .map_or("unknown".into(), |name| name.to_string_lossy());
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let program: String = program.chars().map(|c| if fits(c) { c } else { '_' }).collect();
        let program = if program.chars().all(|c| c == '.') { "unknown" } else { &program };
        self.0.replace("{uid}", &caller.uid.to_string()).replace("{program}", program)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = if text.starts_with('/') { text.to_owned() } else { format!("/{text}") };
        let name = Self(path);
        let trial = name.of(&Caller { uid: 0, program: None });
        let id = spiffe::SpiffeId::new(format!("spiffe://example.org{trial}"));
        id.map_err(|error| format!("{text:?} is no path of a SPIFFE ID: {error}"))?;
        Ok(name)
    }
}

impl Rule {
    /// The name that this rule gives a caller.
    pub fn name(&self, caller: &Caller) -> Option<String> {
        let uid = self.uid.is_none_or(|uid| uid == caller.uid);
        let program = self.program.is_none() || self.program == caller.program;
        (uid && program).then(|| self.name.of(caller))
    }
}

/// `uid=1000,program=/usr/bin/nsc:/ns/{uid}/nsc`: conditions, then a name.
impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |reason: String| format!("{text:?}: {reason}; write uid=N,program=/path:/name");
        let (conditions, name) = text.rsplit_once(':').ok_or_else(|| bad("no name".to_owned()))?;
        let mut rule = Self { name: name.parse()?, ..Self::default() };
        for condition in conditions.split(',').filter(|condition| !condition.is_empty()) {
            match condition.split_once('=') {
                Some(("uid", uid)) => {
                    rule.uid = Some(uid.parse().map_err(|_| bad(format!("{uid:?} is no uid")))?)
                }
                Some(("program", program)) if program.starts_with('/') => rule.program = Some(program.into()),
                _ => return Err(bad(format!("{condition:?} is no condition"))),
            }
        }
        Ok(rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(uid: u32, program: &str) -> Caller {
        Caller { uid, program: Some(program.into()) }
    }

    #[test]
    fn rules_name_callers_by_user_and_program() {
        let rule: Rule = "uid=7,program=/usr/bin/nsc:/ns/{uid}/{program}".parse().unwrap();
        assert_eq!(rule.name(&caller(7, "/usr/bin/nsc")).unwrap(), "/ns/7/nsc");
        assert_eq!(rule.name(&caller(8, "/usr/bin/nsc")), None);
        assert_eq!(rule.name(&caller(7, "/usr/bin/other")), None);
        assert_eq!(rule.name(&Caller { uid: 7, program: None }), None);
        let all: Rule = ":anybody".parse().unwrap();
        assert_eq!(all.name(&caller(1, "/x")).unwrap(), "/anybody");
    }

    #[test]
    fn a_programs_name_can_not_leave_its_place_in_the_path() {
        for (program, path) in [
            ("/a/nsc (deleted)", "/uid/0/nsc__deleted_"),
            ("/a/..x", "/uid/0/..x"),
            ("/", "/uid/0/unknown"),
            ("/a/{uid}", "/uid/0/_uid_"),
        ] {
            assert_eq!(Name::default().of(&caller(0, program)), path);
        }
    }

    #[test]
    fn bad_rules_say_what_is_wrong() {
        for (text, part) in [
            ("nothing", "no name"),
            ("uid=x:/a", "no uid"),
            ("program=rel:/a", "no condition"),
            ("gid=1:/a", "no condition"),
            (":/a/../b", "no path of a SPIFFE ID"),
            (":", "no path of a SPIFFE ID"),
        ] {
            let error = text.parse::<Rule>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
