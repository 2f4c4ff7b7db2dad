//! A trust domain's authorities over time: one signs, and those are believed whose SVIDs may be about.
//!
//! A rotation has three steps, as SPIRE has it. The new authority is in the bundle before it signs, so that everybody who follows the
//! bundle believes it by then; it signs; and the old one leaves the bundle when the last SVID that it signed has ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::sync::{Mutex, watch};

use super::store::{Kept, State};
use super::{Authority, IssuerError};
use crate::identity::TrustDomain;

/// Who signs, and who is believed.
#[derive(Clone)]
pub struct Keys {
    /// Signs SVIDs.
    pub signs: Arc<Authority>,
    /// Was announced, and signs later.
    next: Option<Arc<Authority>>,
    /// Signed before: its SVIDs are about.
    old: Option<CertificateDer<'static>>,
    /// Grows with each change (SPIFFE Trust Domain and Bundle §4.1.2).
    pub sequence: u64,
}

impl Keys {
    /// One authority that is never rotated.
    pub fn fixed(authority: Authority) -> watch::Receiver<Arc<Self>> {
        watch::channel(Arc::new(Self::of(authority))).1
    }

    fn of(authority: Authority) -> Self {
        Self { signs: Arc::new(authority), next: None, old: None, sequence: now() }
    }

    /// The trust domain's bundle.
    pub fn bundle(&self) -> Vec<CertificateDer<'static>> {
        let next = self.next.iter().map(|next| next.certificate().clone());
        std::iter::once(self.signs.certificate().clone()).chain(next).chain(self.old.clone()).collect()
    }

    fn changed(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut keys = self.clone();
        keys.sequence = now().max(keys.sequence + 1);
        change(&mut keys);
        keys
    }
}

/// The time in seconds: it grows over restarts, too.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How long the steps of a rotation take.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long a new authority is announced before it signs: twice what those who follow the bundle take to look again.
    pub announce: Duration,
    /// How long an old authority is believed: the life of an SVID.
    pub believe: Duration,
}

/// Gives a trust domain new authorities.
pub struct Rotation {
    domain: TrustDomain,
    state: Option<State>,
    pace: Pace,
    keys: watch::Sender<Arc<Keys>>,
    turn: Mutex<()>,
}

impl Rotation {
    /// Of the authority kept in `folder` (in memory if there is none); a new one is made if there is none there.
    ///
    /// # Errors
    /// [`IssuerError`] if files can't be read or written, or are another trust domain's.
    pub fn open(folder: Option<PathBuf>, domain: TrustDomain, pace: Pace) -> Result<Self, IssuerError> {
        let state = folder.map(State);
        let keys = match &state {
            None => Keys::of(Authority::new(domain.clone())?),
            Some(state) => {
                let Kept { signs, next, old } = state.open(&domain)?;
                Keys { next: next.map(Arc::new), old, ..Keys::of(signs) }
            }
        };
        Ok(Self { domain, state, pace, keys: watch::channel(Arc::new(keys)).0, turn: Mutex::default() })
    }

    /// The authorities, as they change.
    pub fn keys(&self) -> watch::Receiver<Arc<Keys>> {
        self.keys.subscribe()
    }

    /// Goes on with a rotation that a restart interrupted, and begins one whenever the authority has signed for `every`.
    pub async fn run(&self, every: Option<Duration>) {
        loop {
            let keys = self.keys.borrow().clone();
            if keys.next.is_some() || keys.old.is_some() {
                let turn = self.turn.lock().await;
                self.log(self.finish().await);
                drop(turn);
            }
            let Some(every) = every else { return };
            let age = self.keys.borrow().signs.age();
            tokio::time::sleep(every.saturating_sub(age).max(Duration::from_secs(1))).await;
            if self.keys.borrow().signs.age() >= every {
                self.log(self.rotate().await);
            }
        }
    }

    /// Announces a new authority, lets it sign and ends the old one. Returns when the old one is out of the bundle.
    ///
    /// # Errors
    /// [`IssuerError`] if a file can't be written; the next start goes on from there.
    pub async fn rotate(&self) -> Result<(), IssuerError> {
        let _turn = self.turn.lock().await;
        self.announce()?;
        self.finish().await
    }

    /// True while a rotation is under way.
    pub fn is_under_way(&self) -> bool {
        self.turn.try_lock().is_err()
    }

    fn announce(&self) -> Result<(), IssuerError> {
        let keys = self.keys.borrow().clone();
        if keys.next.is_some() {
            return Ok(());
        }
        let next = Authority::new(self.domain.clone())?;
        if let Some(state) = &self.state {
            state.announce(&next)?;
        }
        tracing::info!(domain = %self.domain, signs_in = ?self.pace.announce, "a new authority is announced");
        self.keys.send_replace(Arc::new(keys.changed(|keys| keys.next = Some(Arc::new(next)))));
        Ok(())
    }

    async fn finish(&self) -> Result<(), IssuerError> {
        if self.keys.borrow().next.is_some() {
            tokio::time::sleep(self.pace.announce).await;
            self.activate()?;
        }
        if self.keys.borrow().old.is_some() {
            tokio::time::sleep(self.pace.believe).await;
            self.retire()?;
        }
        Ok(())
    }

    fn activate(&self) -> Result<(), IssuerError> {
        let keys = self.keys.borrow().clone();
        let Some(next) = keys.next.clone() else { return Ok(()) };
        if let Some(state) = &self.state {
            state.activate(&keys.signs)?;
        }
        tracing::info!(domain = %self.domain, "the new authority signs");
        let old = keys.signs.certificate().clone();
        let changed = keys.changed(|keys| {
            (keys.signs, keys.next, keys.old) = (next, None, Some(old));
        });
        self.keys.send_replace(Arc::new(changed));
        Ok(())
    }

    fn retire(&self) -> Result<(), IssuerError> {
        if let Some(state) = &self.state {
            state.retire()?;
        }
        tracing::info!(domain = %self.domain, "the old authority is not believed any more");
        let keys = self.keys.borrow().clone();
        self.keys.send_replace(Arc::new(keys.changed(|keys| keys.old = None)));
        Ok(())
    }

    fn log(&self, done: Result<(), IssuerError>) {
        if let Err(error) = done {
            tracing::error!(domain = %self.domain, %error, "the authority's rotation stopped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        TrustDomain::new("a.test").unwrap()
    }

    fn open(folder: &std::path::Path) -> Arc<Rotation> {
        let pace = Pace { announce: Duration::from_secs(600), believe: Duration::from_secs(3600) };
        Arc::new(Rotation::open(Some(folder.to_owned()), domain(), pace).unwrap())
    }

    fn names(keys: &watch::Receiver<Arc<Keys>>) -> Vec<CertificateDer<'static>> {
        keys.borrow().bundle()
    }

    async fn bundle_of(
        keys: &mut watch::Receiver<Arc<Keys>>,
        count: usize,
        signer_is_not: &CertificateDer<'_>,
    ) {
        keys.wait_for(|keys| keys.bundle().len() == count && keys.signs.certificate() != signer_is_not)
            .await
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_authority_is_believed_before_it_signs_and_the_old_one_after() {
        let folder = tempfile::tempdir().unwrap();
        let rotation = open(folder.path());
        let mut keys = rotation.keys();
        let [first] = &names(&keys)[..] else { panic!("one authority") };
        let first = first.clone();
        let sequence = keys.borrow().sequence;
        let running = Arc::clone(&rotation);
        let running = tokio::spawn(async move { running.rotate().await });
        keys.wait_for(|keys| keys.bundle().len() == 2).await.unwrap();
        assert_eq!(keys.borrow().signs.certificate(), &first, "announced, and does not sign");
        assert!(rotation.is_under_way());
        bundle_of(&mut keys, 2, &first).await;
        assert!(names(&keys).contains(&first), "its SVIDs are about");
        bundle_of(&mut keys, 1, &first).await;
        running.await.unwrap().unwrap();
        assert!(keys.borrow().sequence >= sequence + 3);
        // What is kept is what signs now.
        assert_eq!(names(&open(folder.path()).keys()), names(&keys));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rotation_goes_on_after_a_restart_from_wherever_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let first = names(&open(folder.path()).keys()).remove(0);
        open(folder.path()).announce().unwrap();
        let announced = open(folder.path());
        assert_eq!(names(&announced.keys()).len(), 2);
        assert_eq!(announced.keys().borrow().signs.certificate(), &first);
        announced.activate().unwrap();
        let activated = open(folder.path());
        assert_eq!(names(&activated.keys()).len(), 2);
        assert_ne!(activated.keys().borrow().signs.certificate(), &first);
        let (mut keys, running) = (activated.keys(), Arc::clone(&activated));
        let running = tokio::spawn(async move { running.run(None).await });
        bundle_of(&mut keys, 1, &first).await;
        running.await.unwrap();

        // The process died between the two renames of an activation.
        let halfway = open(folder.path());
        halfway.announce().unwrap();
        let next = names(&halfway.keys()).remove(1);
        std::fs::rename(folder.path().join("next.key"), folder.path().join("authority.key")).unwrap();
        assert_eq!(open(folder.path()).keys().borrow().signs.certificate(), &next);
        assert!(!folder.path().join("next.der").exists());
    }

    #[tokio::test(start_paused = true)]
    async fn an_authority_that_has_signed_long_enough_is_followed_by_another_one() {
        let pace = Pace { announce: Duration::ZERO, believe: Duration::ZERO };
        let rotation = Arc::new(Rotation::open(None, domain(), pace).unwrap());
        let (mut keys, running) = (rotation.keys(), Arc::clone(&rotation));
        let first = names(&keys).remove(0);
        let running = tokio::spawn(async move { running.run(Some(Duration::ZERO)).await });
        bundle_of(&mut keys, 1, &first).await;
        running.abort();
    }
}
