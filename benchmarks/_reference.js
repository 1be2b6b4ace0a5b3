// The reference's own Socket as a client of the benchmarks: the counterpart of _clients.py on node.
//
//     node _reference.js FOLDER TASK     FOLDER has node_modules, TASK is JSON
//
// It acks as it does by itself, and the listener takes the place of what its plugin does with a message.
'use strict';

const fs = require('fs');
const path = require('path');
const {createRequire} = require('module');

const [folder, argument] = process.argv.slice(2);
const task = JSON.parse(argument);
const load = createRequire(path.join(path.resolve(folder), 'index.js'));
const Socket = load('@webex/internal-plugin-mercury/dist/socket').default;

const nothing = () => {};
const logger = {info: nothing, debug: nothing, warn: nothing, error: nothing, log: nothing};
const options = {
  forceCloseDelay: 2000,
  pingInterval: 60000,
  pongTimeout: 59000,
  token: 'Bearer t',
  trackingId: 'benchmark_1',
  logger,
};
if (task.ca_file) {
  options.ca = fs.readFileSync(task.ca_file);
}
const say = (value) => fs.writeSync(1, `${JSON.stringify(value)}\n`);

async function main() {
  const total = task.sessions * task.messages;
  const latencies = [];
  let left = total;
  let finish;
  const done = new Promise((resolve) => { finish = resolve; });
  const listener = ({data}) => {
    if (!data.data || data.data.eventType !== 'relay.event') {
      return;
    }
    if (task.kind === 'paced') {
      latencies.push(Number(process.hrtime.bigint() - BigInt(data.data.sentAt)));
    }
    left -= 1;
    if (left === 0) {
      finish();
    }
  };
  for (let number = 0; number < task.sessions; number += 1) {
    const socket = new Socket();
    await socket.open(task.url, {...options});
    socket.on('message', listener);
  }
  await new Promise((resolve) => { setTimeout(resolve, 300); });
  const before = process.resourceUsage();
  const cpu = process.cpuUsage();
  const began = process.hrtime.bigint();
  say({ready: true});
  const timer = setTimeout(() => {
    process.stderr.write(`${left} of ${total} messages did not come\n`);
    process.exit(1);
  }, 120000);
  await done;
  clearTimeout(timer);
  const {user, system} = process.cpuUsage(cpu);
  const after = process.resourceUsage();
  const result = {
    cpu: (user + system) / total,
    system: system / total,
    wall: Number(process.hrtime.bigint() - began) / 1e3 / total,
    voluntary: (after.voluntaryContextSwitches - before.voluntaryContextSwitches) / total,
    involuntary: (after.involuntaryContextSwitches - before.involuntaryContextSwitches) / total,
  };
  if (latencies.length) {
    latencies.sort((a, b) => a - b);
    const at = (share) => latencies[Math.round(share * (latencies.length - 1))] / 1e3;
    Object.assign(result, {p50: at(0.5), p99: at(0.99)});
  }
  await new Promise((resolve) => { setTimeout(resolve, 50); }); // the last acks are on their way
  say(result);
  process.exit(0);
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
