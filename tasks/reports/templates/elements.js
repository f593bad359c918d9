"use strict";
// What the scripts of every page share.
const find = (selector, root = document) => root.querySelector(selector);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const field = (name) => find(`#${name}`);
const whole = new Intl.NumberFormat("en");
