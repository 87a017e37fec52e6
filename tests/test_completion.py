"""The shells themselves complete command lines of kwsd: commands, options, choices, files and folders."""

import shutil
import subprocess

import pytest

SHELLS = ("bash", "zsh", "fish")

CASES = {
    "kwsd rep": "replay",
    "kwsd --verb": "--verbose",  # of `kwsd run`, which need not be said
    "kwsd run --verb": "--verbose",
    "kwsd run --config ta": "tape.yaml",
    "kwsd run --source sp": "speech.wav",
    "kwsd replay speech.wav ta": "tape.yaml",
    "kwsd train --device cu": "cuda",
    "kwsd train --data fo": "folder",  # not forest.wav
    "kwsd ctl thr": "threshold",
    "kwsd ctl watch --sco": "--scores",
    "kwsd schema ev": "events",
    "kwsd completion z": "zsh",
}

BASH = """
source "$1"
function=$(complete -p kwsd | sed 's/.*-F \\([^ ]*\\).*/\\1/')
while read -ra COMP_WORDS; do
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    $function kwsd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    echo "${COMPREPLY[@]}"
done
"""

FISH = """
source $argv[1]
while read --local line
    complete --do-complete $line | string split --fields 1 \\t | string join " "
end
true
"""

# A shell at a terminal of its own: Tab completes, and Ctrl-X tells the line as it is then.
ZSH = """
zmodload zsh/zpty
mkdir -p "$1.d" && cp "$1" "$1.d/_kwsd"
zpty shell "TERM=dumb exec zsh -f -i"
zpty -w shell "PS1=; $2"
zpty -w shell 'tell() { print -r -- "<$BUFFER>"; zle kill-whole-line }; zle -N tell; bindkey "^X" tell'
while read -r line; do
    zpty -w -n shell "$line"$'\\t\\x18'
    zpty -r shell told '*<kwsd *>*'
    told=${${told##*<}%%>*}
    print -r -- ${${told% }##* }
done
"""

COMMANDS = {
    "bash": ["bash", "--norc", "-c", BASH, "bash"],
    "zsh": ["zsh", "-f", "-c", ZSH, "zsh"],
    "fish": ["fish", "--no-config", "-c", FISH],
}


@pytest.fixture
def script(kwsd, tmp_path):
    """`script("bash")` is a file of what `kwsd completion bash` prints."""

    def write(shell):
        result = kwsd("completion", shell)
        assert (result.code, result.err) == (0, "")
        path = tmp_path / f"for_{shell}"
        path.write_text(result.out)
        return path

    return write


@pytest.mark.parametrize(("shell", "sourced"), [*((shell, False) for shell in SHELLS), ("zsh", True)])
def test_a_shell_completes_what_can_be_typed(shell, sourced, script, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    folder = tmp_path / "here"
    (folder / "folder").mkdir(parents=True)
    for name in ("forest.wav", "speech.wav", "tape.yaml"):
        (folder / name).touch()
    typed = "".join(f"{line}\n" for line in CASES)
    written = script(shell)
    command = [*COMMANDS[shell], written, f"fpath=({written}.d $fpath); autoload -Uz compinit; compinit -u -D"]
    if sourced:
        command[-1] = f"autoload -Uz compinit; compinit -u -D; source {written}"
    done = subprocess.run(command, input=typed, capture_output=True, text=True, cwd=folder, timeout=30, check=True)
    assert done.stderr == ""
    completed = [word.rstrip("/") for word in done.stdout.splitlines()]
    assert dict(zip(CASES, completed, strict=True)) == CASES


def test_another_shell_is_refused(kwsd):
    result = kwsd("completion", "csh")
    assert result.code == 2
    assert "fish" in result.err
