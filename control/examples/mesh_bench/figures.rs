//! How often and how fast something was done.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What one phase of a load tells, as a line of JSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// What was done.
    pub event: String,
    /// By how many at the same time.
    pub clients: usize,
    /// How often, failures included.
    pub count: usize,
    /// How often in vain, and why at first.
    pub failed: usize,
    pub first_error: Option<String>,
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Figures {
    /// Of what was measured one by one.
    pub fn of(event: &str, clients: usize, mut times: Vec<Duration>, took: Duration) -> Self {
        times.sort_unstable();
        let at = |quantile: f64| {
            let place = (quantile * times.len() as f64) as usize;
            times.get(place.min(times.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        Self {
            event: event.to_owned(),
            clients,
            count: times.len(),
            per_second: times.len() as f64 / took.as_secs_f64().max(1e-9),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            max_ms: at(1.0),
            ..Self::default()
        }
    }

    /// Tells them, on standard output.
    pub fn tell(&self) {
        println!("{}", serde_json::to_string(self).expect("numbers and text are JSON"));
    }
}

/// When to stop doing something again and again.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    /// After so many,
    pub count: usize,
    /// or when so much time is over.
    pub time: Duration,
}

#[derive(Default)]
struct Progress {
    next: usize,
    times: Vec<Duration>,
    failed: usize,
    first_error: Option<String>,
}

/// `clients` tasks do `one(client, n)` for n = 0, 1, 2, … until it is enough.
pub async fn measure<F, Fut>(event: &str, clients: usize, until: Until, one: F) -> Figures
where
    F: Fn(usize, usize) -> Fut + 'static,
    Fut: Future<Output = Result<(), String>> + 'static,
{
    let one = Rc::new(one);
    let progress = Rc::new(RefCell::new(Progress::default()));
    let start = Instant::now();
    let local = tokio::task::LocalSet::new();
    for client in 0..clients {
        let (one, progress) = (Rc::clone(&one), Rc::clone(&progress));
        local.spawn_local(async move {
            while start.elapsed() < until.time {
                let n = progress.borrow().next;
                if n >= until.count {
                    return;
                }
                progress.borrow_mut().next += 1;
                let began = Instant::now();
                let done = one(client, n).await;
                let mut progress = progress.borrow_mut();
                progress.times.push(began.elapsed());
                if let Err(error) = done {
                    progress.failed += 1;
                    progress.first_error.get_or_insert(error);
                }
            }
        });
    }
    local.await;
    let progress = progress.take();
    let figures = Figures::of(event, clients, progress.times, start.elapsed());
    Figures { failed: progress.failed, first_error: progress.first_error, ..figures }
}
