// Talking to the server that this page is from, and to nobody else.
import { known, say } from "./elements.js";
const KEY = "plimsoll.key";
/** What a server says when it says no. */
export class Refused extends Error {
    status;
    code;
    field;
    constructor(status, code, message, field) {
        super(message);
        this.status = status;
        this.code = code;
        this.field = field;
    }
}
function headers() {
    const all = new Headers();
    const key = sessionStorage.getItem(KEY);
    if (key !== null)
        all.set("Authorization", `Bearer ${key}`);
    return all;
}
async function refusal(response) {
    const text = await response.text();
    try {
        const e = JSON.parse(text).error;
        return new Refused(response.status, String(e.code), String(e.message), e.param);
    }
    catch {
        return new Refused(response.status, "", `the server answered ${response.status}`, null);
    }
}
let asking = null;
/** Asks for a key; whether one was given. Whoever asks meanwhile waits for the same answer. */
export function askForKey() {
    asking ??= new Promise((done) => {
        const dialog = known("key");
        const form = known("key-form");
        const field = known("key-field");
        if (sessionStorage.getItem(KEY) !== null)
            say(known("key-why"), "The key that was given is not valid here.");
        const end = (given) => {
            field.value = "";
            asking = null;
            form.onsubmit = null;
            dialog.onclose = null;
            dialog.close();
            done(given);
        };
        form.onsubmit = (event) => {
            event.preventDefault();
            const key = field.value.trim();
            // A header carries no other.
            if (!/^[!-~]+$/.test(key)) {
                say(known("key-why"), "A key has letters, digits and signs, and no spaces.");
                return;
            }
            sessionStorage.setItem(KEY, key);
            end(true);
        };
        known("key-cancel").onclick = () => end(false);
        dialog.onclose = () => end(false);
        dialog.showModal();
        field.focus();
    });
    return asking;
}
/** Asks, with a key if there is one, and again with another where it is refused. */
export async function ask(path, init = {}) {
    for (;;) {
        const all = headers();
        if (init.body !== undefined)
            all.set("Content-Type", "application/json");
        const response = await fetch(path, { ...init, headers: all, cache: "no-store", credentials: "omit" });
        if (response.ok)
            return response;
        const why = await refusal(response);
        if (response.status !== 401 || !(await askForKey()))
            throw why;
    }
}
/** What an event stream tells, event by event, until it ends. Nothing for `silence_ms` is an end. */
export async function stream(path, silence_ms, told, stop) {
    const over = new AbortController();
    const signal = AbortSignal.any([stop, over.signal]);
    let timer = setTimeout(() => over.abort(), silence_ms);
    try {
        const response = await ask(path, { signal });
        const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
        if (reader === undefined)
            return;
        let rest = "";
        for (;;) {
            const { done, value } = await reader.read();
            if (done)
                return;
            clearTimeout(timer);
            timer = setTimeout(() => over.abort(), silence_ms);
            rest += value;
            for (;;) {
                const end = /\r?\n\r?\n/.exec(rest);
                if (end === null)
                    break;
                const event = rest.slice(0, end.index);
                rest = rest.slice(end.index + end[0].length);
                const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
                if (data.length > 0)
                    told(data.map((line) => line.slice(5).trimStart()).join("\n"));
            }
        }
    }
    finally {
        clearTimeout(timer);
    }
}
