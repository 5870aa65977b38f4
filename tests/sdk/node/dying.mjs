// A worker that ends in the middle of a call; started by leaving.mjs.

import { connect } from './world.mjs'

connect('dying').registerFunction('dying::die', async () => process.exit(1))
