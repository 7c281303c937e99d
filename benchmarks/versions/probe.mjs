// Runs files in onnxruntime-web (WASM), in Node and in a browser; the lines are those of probe.py.
//
//   node probe.mjs JOB.json try     every file of the job in each of its ways, up to the first failure: a JSON line for each
//   node probe.mjs JOB.json time    every file of the job in its first way, interleaved: a JSON line

const options = {
  default: {},
  disable_all: { graphOptimizationLevel: "disabled" },
  basic: { graphOptimizationLevel: "basic" },
  extended: { graphOptimizationLevel: "extended" },
  disable_quant_qdq: { extra: { session: { disable_quant_qdq: "1" } } },
};

async function open(ort, content, way) {
  const session = await ort.InferenceSession.create(content, {
    executionProviders: ["wasm"],
    logSeverityLevel: 4,
    ...options[way],
  });
  const [input] = session.inputNames;
  const [output] = session.outputNames;
  return async (tensor) => (await session.run({ [input]: tensor }))[output].data;
}

export async function tryFiles(ort, job, read, tell) {
  const images = new ort.Tensor("float32", new Float32Array(await read(job.images)), job.shape);
  for (const file of job.files) {
    for (const way of file.ways) {
      const line = { version: ort.env.versions.web ?? ort.env.versions.common, way, failure: null, values: null };
      try {
        const content = new Uint8Array(await read(file.path));
        const call = await open(ort, content, way);
        line.values = Array.from(await call(images)); // JSON writes what is not finite as null
      } catch (error) {
        line.failure = String(error?.message ?? error).split(/\s+/).join(" ").slice(0, 300);
      }
      await tell(line);
      if (line.failure !== null) return; // what has failed once may compute nothing right afterwards
    }
  }
}

export async function timeFiles(ort, job, read, clock) {
  const [, ...rest] = job.shape;
  const size = rest.reduce((product, length) => product * length, 1);
  const image = new ort.Tensor("float32", new Float32Array(await read(job.images)).slice(0, size), [1, ...rest]);
  const calls = [];
  for (const file of job.files) calls.push(await open(ort, new Uint8Array(await read(file.path)), file.ways[0]));
  const repeats = [];
  for (const call of calls) {
    for (let i = 0; i < 3; i++) await call(image);
    const start = clock();
    for (let i = 0; i < 10; i++) await call(image);
    repeats.push(Math.max(1, Math.round((job.seconds * 1e3) / Math.max((clock() - start) / 10, 1e-3))));
  }
  const milliseconds = calls.map(() => []);
  for (let round = 0; round < job.rounds; round++) {
    for (const [number, call] of calls.entries()) {
      const start = clock();
      for (let i = 0; i < repeats[number]; i++) await call(image);
      milliseconds[number].push((clock() - start) / repeats[number]);
    }
  }
  return { milliseconds };
}

if (typeof process !== "undefined" && process.versions?.node) {
  const fs = await import("node:fs/promises");
  const { createRequire } = await import("node:module");
  const [, , path, action] = process.argv;
  const job = JSON.parse(await fs.readFile(path, "utf8"));
  const ort = createRequire(`${job.package}/package.json`)("onnxruntime-web");
  ort.env.wasm.numThreads = job.threads;
  const read = async (file) => {
    const content = await fs.readFile(file);
    return content.buffer.slice(content.byteOffset, content.byteOffset + content.byteLength);
  };
  // CPU time of the process leaves out when others had the core.
  const clock = () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e3;
  };
  const tell = (line) => new Promise((done) => process.stdout.write(`${JSON.stringify(line)}\n`, done));
  if (action === "time") await tell(await timeFiles(ort, job, read, clock));
  else await tryFiles(ort, job, read, tell);
  process.exit(0); // worker threads would keep it
}
