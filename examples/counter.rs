//! Counts, and makes a checkpoint of itself at every fifth number: `launcher --name counting -- counter 10`. Kill it and `ctl restore counting` goes
//! on from the last one.
use dormouse::Outcome;

fn main() {
    let last: u64 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(10);
    // Not worth keeping, as it can be filled anew.
    let cache = vec![7u8; 4 << 20];
    // SAFETY: bytes may be zero, and nothing reads them after a restore.
    if let Err(e) = unsafe { dormouse::drop_memory(cache.as_ptr(), cache.len()) } {
        eprintln!("{e}");
    }
    for count in 1..=last {
        println!("{count}");
        if count % 5 != 0 {
            continue;
        }
        match dormouse::checkpoint() {
            Ok(Outcome::Continued { number }) => println!("checkpoint {number}, continued"),
            Ok(Outcome::Restored { generation, number }) => {
                println!("checkpoint {number}, restored, generation {generation}")
            }
            Ok(Outcome::Alone { why }) => println!("alone: {why}"),
            Err(e) => println!("failed: {e}"),
        }
    }
    drop(cache);
}
