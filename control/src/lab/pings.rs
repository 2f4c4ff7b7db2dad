//! Pings of which none may be lost, as `ping` (iputils) sends and reports them.

use std::collections::BTreeSet;

/// Between two pings, in seconds.
const INTERVAL: &str = "0.02";
/// What `ping` is given to wait for the last answer, in seconds.
const DEADLINE: &str = "20";

/// The arguments for `ping` to send `count` and wait for the answer to each.
///
/// By itself it waits for its last answers only twice as long as the slowest has taken so far, and calls what a busy machine
/// answers later lost. With a deadline it goes on until `count` answers are there, and may send a few more meanwhile.
pub fn arguments(count: u32) -> Vec<String> {
    let count = count.to_string();
    ["-n", "-i", INTERVAL, "-c", &count, "-w", DEADLINE].map(str::to_owned).to_vec()
}

/// Which of the first `count` pings have no answer in what `ping` said.
pub fn lost(said: &str, count: u32) -> Vec<u32> {
    let answered: BTreeSet<u32> = said.lines().filter_map(answered_by).collect();
    (1..=count).filter(|number| !answered.contains(number)).collect()
}

/// For a `ping` that was interrupted: how many are answered, and which are not although a later one is. What follows the last
/// answer may have been on its way when the interrupt came, so `ping`'s own count of what it sent is no measure.
pub fn answered(said: &str) -> (usize, Vec<u32>) {
    let answered: BTreeSet<u32> = said.lines().filter_map(answered_by).collect();
    (answered.len(), lost(said, answered.last().copied().unwrap_or_default()))
}

/// The number of the ping that a line is the answer to. A line of an error has the number, too, but not the time.
fn answered_by(line: &str) -> Option<u32> {
    let (_, after) = line.split_once("icmp_seq=")?;
    let (number, rest) = after.split_once(' ')?;
    rest.contains("time=").then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_however_late_and_an_error_is_none() {
        let said = "PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.\n\
            64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=0.15 ms\n\
            From 10.0.0.1 icmp_seq=2 Destination Host Unreachable\n\
            64 bytes from 10.0.0.2: icmp_seq=4 ttl=64 time=812 ms\n\
            64 bytes from 10.0.0.2: icmp_seq=3 ttl=64 time=830 ms\n\
            \n--- 10.0.0.2 ping statistics ---\n5 packets transmitted, 3 received, 40% packet loss, time 81ms\n";
        assert_eq!(lost(said, 4), [2]);
        assert_eq!(lost(said, 5), [2, 5]);
        assert_eq!(lost("", 2), [1, 2]);
        assert_eq!(answered(said), (3, vec![2]));
        assert_eq!(answered(""), (0, vec![]));
    }
}
