//! Two workers that call each other all the time, and must not notice what others do.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine_client::{Call, Client, ClientConfig, FunctionSpec};
use serde_json::{Value, json};
use test_rig::Rig;
use tokio::sync::watch;

const ECHO: &str = "bystander::echo";

/// An answer that takes longer has been noticed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Calls that are answered before and after the bad day.
const SOME: u64 = 20;

/// One worker calls, the other one answers.
pub struct Bystander {
    answered: watch::Receiver<u64>,
    noticed: Arc<Mutex<Vec<String>>>,
}

impl Bystander {
    /// # Panics
    /// When calls are not answered to begin with.
    pub async fn beside(rig: &Rig) -> Self {
        let client =
            |name: &str| Client::connect(ClientConfig { url: rig.url(), name: name.to_owned(), description: None });
        let (caller, echo) = (client("bystander-caller"), client("bystander"));
        let spec = FunctionSpec { id: ECHO.to_owned(), ..FunctionSpec::default() };
        echo.register(spec, |call: Call| async move { Ok(Some(call.data)) });
        let begun = Instant::now();
        while let Err(error) = caller.call(ECHO, &json!({ "n": 0 }), PATIENCE).await {
            assert!(begun.elapsed() < PATIENCE, "the bystander was not answered at all: {error}");
        }
        let noticed = Arc::new(Mutex::new(Vec::new()));
        let (count, answered) = watch::channel(0);
        tokio::spawn(call_for_ever((caller, echo), count, Arc::clone(&noticed)));
        let bystander = Self { answered, noticed };
        bystander.some_calls().await;
        bystander
    }

    async fn some_calls(&self) {
        let mut answered = self.answered.clone();
        let enough = *answered.borrow() + SOME;
        let waiting = tokio::time::timeout(2 * PATIENCE, answered.wait_for(|count| *count >= enough));
        assert!(
            waiting.await.is_ok_and(|waited| waited.is_ok()),
            "the bystander is not answered: {:?}",
            self.noticed()
        );
    }

    fn noticed(&self) -> Vec<String> {
        self.noticed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// # Panics
    /// When a call was not answered as it should, or the engine panicked.
    pub async fn noticed_nothing(self, rig: &Rig) {
        self.some_calls().await;
        assert_eq!(self.noticed(), [""; 0], "the bystander noticed");
        assert!(!rig.log().contains("panicked"), "the engine panicked");
    }
}

async fn call_for_ever((caller, _echo): (Client, Client), count: watch::Sender<u64>, noticed: Arc<Mutex<Vec<String>>>) {
    for n in 1.. {
        let said = json!({ "n": n });
        let answer = caller.call(ECHO, &said, PATIENCE).await;
        let problem = match answer {
            Ok(Some(answer)) => match serde_json::from_str::<Value>(answer.get()) {
                Ok(heard) if heard["n"] == said["n"] => None,
                heard => Some(format!("call {n} was answered with {heard:?}")),
            },
            Ok(None) => Some(format!("call {n} was answered with nothing")),
            Err(error) => Some(format!("call {n}: {error}")),
        };
        if let Some(problem) = problem {
            noticed.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
        }
        // Nobody is beside it any more.
        if count.send(n).is_err() {
            return;
        }
    }
}
