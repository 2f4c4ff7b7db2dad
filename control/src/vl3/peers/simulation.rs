//! Endpoints that come, go, and dial each other in every order, over a registry and a network that take their time and lose calls:
//! whatever happened, each pair has one link in the end.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use prost_types::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use super::order::Age;
use super::pairing::{Action, Admission, Caller, Candidate, Pairing};

/// Milliseconds.
type Time = u64;

const PATIENCE: Time = 5_000;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Start(usize),
    Leave(usize),
    /// A node hears of an endpoint: its name and time.
    Hears(usize, String, Option<i64>),
    /// A Go endpoint's only look.
    Looks(usize),
    /// A Request arrives, of this life of the dialler.
    Arrives {
        from: usize,
        life: u32,
        to: usize,
    },
    /// Its answer.
    Answered {
        from: usize,
        life: u32,
        to: usize,
        made: bool,
    },
    /// A Close arrives, or what stands for one when a dialler is dead.
    Ends {
        from: usize,
        life: u32,
        to: usize,
    },
    HungUp {
        from: usize,
        to: usize,
    },
    Wakes(usize),
}

struct Node {
    name: String,
    go: bool,
    alive: bool,
    life: u32,
    registered: i64,
    pairing: Pairing,
    /// Whom it dials or has dialled.
    dials: BTreeSet<usize>,
    /// Whose answer it has.
    answered: BTreeSet<usize>,
    /// Who dialled it, in which life.
    links: BTreeMap<usize, u32>,
}

struct World {
    random: StdRng,
    base: Instant,
    now: Time,
    sequence: u64,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    nodes: Vec<Node>,
    /// When a node's view of the registry is as new as this.
    heard: Vec<Time>,
    lossy: bool,
}

impl World {
    fn new(seed: u64, nodes: usize, go: usize) -> Self {
        let node = |index: usize| Node {
            name: format!("vl3-{index}"),
            go: index < go,
            alive: false,
            life: 0,
            registered: 0,
            pairing: Pairing::new("", None, Duration::ZERO),
            dials: BTreeSet::new(),
            answered: BTreeSet::new(),
            links: BTreeMap::new(),
        };
        Self {
            random: StdRng::seed_from_u64(seed),
            base: Instant::now(),
            now: 0,
            sequence: 0,
            events: BinaryHeap::new(),
            nodes: (0..nodes).map(node).collect(),
            heard: vec![0; nodes],
            lossy: true,
        }
    }

    fn at(&mut self, time: Time, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((time, self.sequence, event)));
    }

    fn after(&mut self, most: Time, event: Event) {
        let time = self.now + self.random.random_range(1..=most);
        self.at(time, event);
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_millis(self.now)
    }

    fn index(&self, name: &str) -> usize {
        self.nodes.iter().position(|node| node.name == name).expect("a node")
    }

    fn loses(&mut self) -> bool {
        self.lossy && self.random.random_range(0..5) == 0
    }

    /// Everybody hears it, each at its own time, but in the order in which it was said.
    fn tell(&mut self, name: &str, registered: Option<i64>) {
        for node in 0..self.nodes.len() {
            let time = (self.now + self.random.random_range(1..1_500)).max(self.heard[node] + 1);
            self.heard[node] = time;
            self.at(time, Event::Hears(node, name.to_owned(), registered));
        }
    }

    fn run(&mut self) {
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            self.now = time;
            // Far beyond all comings and goings calls are no longer lost, so that it settles.
            self.lossy = time < 60_000;
            assert!(time < 600_000, "it does not settle: {event:?}");
            self.step(event);
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Start(node) => self.start(node),
            Event::Leave(node) => self.leave(node),
            Event::Hears(node, name, registered) => self.hears(node, &name, registered),
            Event::Looks(node) => self.looks(node),
            Event::Arrives { from, life, to } => self.arrives(from, life, to),
            Event::Answered { from, life, to, made } => {
                let current = self.nodes[from].life == life && self.nodes[from].alive;
                if current && self.nodes[from].dials.contains(&to) {
                    match made {
                        true => drop(self.nodes[from].answered.insert(to)),
                        false => self.after(2_000, Event::Arrives { from, life, to }),
                    }
                }
            }
            Event::Ends { from, life, to } => {
                let now = self.instant();
                let id = self.nodes[from].pairing.link_id(&self.nodes[to].name);
                let node = &mut self.nodes[to];
                if node.links.get(&from) == Some(&life) {
                    node.links.remove(&from);
                    node.pairing.incoming_gone(&id, now);
                    self.act(to);
                }
            }
            Event::HungUp { from, to } => {
                let (now, name) = (self.instant(), self.nodes[to].name.clone());
                self.nodes[from].pairing.hung_up(&name, now);
                self.act(from);
            }
            Event::Wakes(node) => self.act(node),
        }
    }

    fn start(&mut self, index: usize) {
        // Few different times, so that many are equal.
        let registered = (self.now / 2_000) as i64;
        let node = &mut self.nodes[index];
        node.alive = true;
        node.life += 1;
        node.registered = registered;
        node.pairing = Pairing::new(&node.name, None, Duration::from_millis(PATIENCE));
        node.pairing.registered_as(age(&node.name, registered));
        let name = node.name.clone();
        let now = self.instant();
        // What the registry has already: all at once, as a watch begins.
        for other in 0..self.nodes.len() {
            if other != index && self.nodes[other].alive {
                let candidate = candidate(&self.nodes[other].name, self.nodes[other].registered);
                self.nodes[index].pairing.registered(candidate, now);
            }
        }
        self.tell(&name, Some(registered));
        if self.nodes[index].go {
            self.after(100, Event::Looks(index));
        }
        self.act(index);
    }

    fn leave(&mut self, index: usize) {
        if !self.nodes[index].alive {
            return;
        }
        let node = &mut self.nodes[index];
        (node.alive, node.links, node.answered) = (false, BTreeMap::new(), BTreeSet::new());
        let (life, dials, name) = (node.life, std::mem::take(&mut node.dials), node.name.clone());
        for to in dials {
            self.after(1_000, Event::Ends { from: index, life, to });
        }
        self.tell(&name, None);
    }

    fn hears(&mut self, index: usize, name: &str, registered: Option<i64>) {
        let now = self.instant();
        let node = &mut self.nodes[index];
        if !node.alive || node.go {
            return;
        }
        match registered {
            Some(time) => node.pairing.registered(candidate(name, time), now),
            None => node.pairing.unregistered(name),
        }
        self.act(index);
    }

    fn looks(&mut self, index: usize) {
        let own = self.nodes[index].registered;
        let life = self.nodes[index].life;
        let older = |(other, node): &(usize, &Node)| *other != index && node.alive && node.registered <= own;
        let found: Vec<usize> = self.nodes.iter().enumerate().filter(older).map(|(other, _)| other).collect();
        for to in found {
            self.nodes[index].dials.insert(to);
            self.after(300, Event::Arrives { from: index, life, to });
        }
    }

    fn arrives(&mut self, from: usize, life: u32, to: usize) {
        let dialler = &self.nodes[from];
        if !dialler.alive || dialler.life != life || !dialler.dials.contains(&to) {
            return;
        }
        let caller = Caller { name: dialler.name.clone(), identity: None, yields: !dialler.go };
        let id = dialler.pairing.link_id(&self.nodes[to].name);
        // Lost on the way, or on the way back: then there is a link that its dialler does not know of yet.
        let works = self.nodes[to].answered.contains(&from);
        let node = &self.nodes[to];
        let refused = !node.go && node.pairing.may_come(&id, &caller, works) == Admission::Refused;
        let reached = !self.loses() && self.nodes[to].alive && !refused;
        if reached {
            self.nodes[to].links.insert(from, life);
            self.nodes[to].pairing.incoming(&id, caller);
            self.act(to);
        }
        let made = reached && !self.loses();
        self.after(300, Event::Answered { from, life, to, made });
    }

    fn act(&mut self, index: usize) {
        if !self.nodes[index].alive || self.nodes[index].go {
            return;
        }
        let now = self.instant();
        let life = self.nodes[index].life;
        for action in self.nodes[index].pairing.decide(now) {
            match action {
                Action::Dial { peer, .. } => {
                    let to = self.index(&peer);
                    assert_ne!(to, index, "dials itself");
                    assert!(self.nodes[index].dials.insert(to), "dials twice");
                    self.after(300, Event::Arrives { from: index, life, to });
                }
                Action::HangUp { peer, .. } => {
                    let to = self.index(&peer);
                    assert!(self.nodes[index].dials.remove(&to), "hangs up on nobody");
                    self.nodes[index].answered.remove(&to);
                    let time = self.now + self.random.random_range(1..=300);
                    self.at(time, Event::Ends { from: index, life, to });
                    self.at(time + 1, Event::HungUp { from: index, to });
                }
            }
        }
        if let Some(look) = self.nodes[index].pairing.next_look() {
            let time = (look - self.base).as_millis() as Time;
            if time > self.now {
                self.at(time + 1, Event::Wakes(index));
            }
        }
    }

    /// Links between those that are alive, each by its ends; Go endpoints among themselves are left out.
    fn links(&self) -> Vec<(usize, usize)> {
        let mut links = Vec::new();
        for (to, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            for (from, life) in &node.links {
                let dialler = &self.nodes[*from];
                assert!(dialler.alive && dialler.life == *life, "{from}'s link to {to} outlived it");
                assert!(dialler.dials.contains(&to), "{to} has a link that {from} has closed");
                if !(node.go && dialler.go) {
                    links.push(((*from).min(to), (*from).max(to)));
                }
            }
        }
        links.sort_unstable();
        links
    }

    fn pairs(&self) -> Vec<(usize, usize)> {
        let alive = |index: &usize| self.nodes[*index].alive;
        let all: Vec<usize> = (0..self.nodes.len()).filter(alive).collect();
        let of = |one: &usize| {
            all.iter().filter(move |other| *other > one).map(|other| (*one, *other)).collect::<Vec<_>>()
        };
        all.iter()
            .flat_map(of)
            .filter(|(one, other)| !(self.nodes[*one].go && self.nodes[*other].go))
            .collect()
    }
}

fn age(name: &str, seconds: i64) -> Age {
    Age::new(name, Some(&Timestamp { seconds, nanos: 0 }))
}

fn candidate(name: &str, seconds: i64) -> Candidate {
    Candidate { name: name.to_owned(), identity: None, age: age(name, seconds) }
}

#[test]
fn each_pair_has_one_link_however_they_start_and_leave() {
    for seed in 0..400 {
        let mut random = StdRng::seed_from_u64(seed);
        let nodes = random.random_range(2..=7);
        let mut world = World::new(seed, nodes, 0);
        for node in 0..nodes {
            // Half of the runs begin all at once.
            let start = if seed % 2 == 0 { 1 } else { random.random_range(1..20_000) };
            world.at(start, Event::Start(node));
            if random.random_range(0..3) == 0 {
                let leaves = start + random.random_range(1..20_000);
                world.at(leaves, Event::Leave(node));
                if random.random_range(0..2) == 0 {
                    // Back as another life, with a later time.
                    world.at(leaves + random.random_range(2_000..9_000), Event::Start(node));
                }
            }
        }
        world.run();
        let alive = world.nodes.iter().filter(|node| node.alive).count();
        assert_eq!(world.links(), world.pairs(), "seed {seed}");
        assert_eq!(world.links().len(), alive * alive.saturating_sub(1) / 2, "seed {seed}");
    }
}

#[test]
fn with_go_endpoints_each_pair_has_one_link_too() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let nodes = random.random_range(2..=6);
        let go = random.random_range(1..nodes.max(2));
        let mut world = World::new(seed, nodes, go);
        for node in 0..nodes {
            let start = if seed % 2 == 0 { 1 } else { random.random_range(1..20_000) };
            world.at(start, Event::Start(node));
        }
        world.run();
        assert_eq!(world.links(), world.pairs(), "seed {seed}");
    }
}
