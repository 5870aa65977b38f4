//! Workers, built-in workers, the engine's own calls, middleware, reconnects and departures, in any order. What has to
//! hold after each step is written down with the fuzz target, which tells the same stories.

use fuzz::Features;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_accepted_call_is_answered_exactly_once(story in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz::router(&story, &mut Features::default());
    }

    /// Few of each, so that they meet: two plain workers, one behind rules and a middleware, and both built-in workers.
    #[test]
    fn so_it_is_in_a_small_world(scenes in prop::collection::vec(prop::array::uniform6(0..6_u8), 0..100)) {
        let world = [[0, 0], [0, 0], [0, 5], [4, 0], [4, 1]].concat();
        // Calls, answers and departures, more often than anything else.
        let story = scenes.iter().flat_map(|[scene, rest @ ..]| {
            [&[[15, 18, 6, 2, 20, 3][usize::from(*scene)]], &rest[..]].concat()
        });
        let story: Vec<u8> = world.into_iter().chain(story).collect();
        fuzz::router(&story, &mut Features::default());
    }
}
