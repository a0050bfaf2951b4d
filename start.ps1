# From a bare Windows with Python >= 3.10 to a merged model: .\start.ps1 runs the demo, .\start.ps1 test the checks,
# .\start.ps1 COMMAND ... any other command of the pack. What is installed lies in .venv and nowhere else.
$ErrorActionPreference = "Stop"
$root = $PSScriptRoot
$lock = Join-Path $root "requirements.lock"
$venv = Join-Path $root ".venv"
$python = Join-Path $venv "Scripts\python.exe"
$installed = Join-Path $venv "installed"

function Invoke-Checked {
    & $args[0] @($args | Select-Object -Skip 1)
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
}

function Find-Python {
    $candidates = @(@("py", "-3"), @("python3"), @("python"))
    if ($env:PYTHON) { $candidates = @(, @($env:PYTHON)) + $candidates }
    foreach ($candidate in $candidates) {
        if (-not (Get-Command $candidate[0] -ErrorAction SilentlyContinue)) { continue }
        $rest = @($candidate | Select-Object -Skip 1)
        & $candidate[0] @rest -c "import sys; sys.exit(sys.version_info < (3, 10))" 2>$null
        if ($LASTEXITCODE -eq 0) { return , $candidate }
    }
    throw "start.ps1: expected Python 3.10 or newer, found none: install it from python.org, or name it in `$env:PYTHON"
}

function Install-Pack {
    $stamp = (Get-FileHash $lock -Algorithm SHA256).Hash
    if ((Test-Path $python) -and (Test-Path $installed) -and ((Get-Content $installed -Raw).Trim() -eq $stamp)) { return }
    if (-not (Test-Path $python)) {
        $found = Find-Python
        $rest = @($found | Select-Object -Skip 1)
        Invoke-Checked $found[0] @rest -m venv $venv
    }
    Write-Host "installing into $venv (torch first, then the rest)"
    # torch comes first and alone: pip then takes the build for this machine and does not look for another one.
    $torch = (Select-String -Path $lock -Pattern "^torch==").Line
    Invoke-Checked $python -m pip install --quiet --disable-pip-version-check $torch
    Invoke-Checked $python -m pip install --quiet --disable-pip-version-check -r $lock
    Set-Content $installed $stamp
}

function Invoke-Tests {
    Set-Location $root
    Invoke-Checked $python -m ruff check .
    $web = @(Get-ChildItem "tests\web" -Filter "*.test.*js" -ErrorAction SilentlyContinue | ForEach-Object { $_.FullName })
    if ((Get-Command node -ErrorAction SilentlyContinue) -and $web.Count) { Invoke-Checked node --test @web }
    else { Write-Host "SKIPPED: the tests of web/, they need node" }
    $comfyui = if ($env:COMFYUI_PATH) { $env:COMFYUI_PATH } else { Join-Path $HOME "comfy\ComfyUI" }
    if (-not (Test-Path (Join-Path $comfyui "main.py"))) {
        Write-Host "SKIPPED: the tests in a real ComfyUI, set COMFYUI_PATH to its folder"
    }
    Invoke-Checked $python -m pytest @args
}

Install-Pack
$command = if ($args.Count) { $args[0] } else { "demo" }
$rest = @($args | Select-Object -Skip 1)
switch ($command) {
    "test" { Invoke-Tests @rest }
    "demo" { Invoke-Checked $python $root demo $(if ($rest.Count) { $rest[0] } else { Join-Path $root "demo" }) }
    default { Invoke-Checked $python $root @args }
}
