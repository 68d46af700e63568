"""RGB images: conversion of modes and arrays, and resizing. image.py reads files and checks input."""
